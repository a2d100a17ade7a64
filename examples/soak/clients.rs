//! Clients, and what they are told.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper_util::rt::TokioIo;
use kinetoscope::client::{Client, Connection};
use kinetoscope::model::counter::CounterStream;
use kinetoscope::proto::classify_video_stream_request::Payload;
use kinetoscope::proto::classify_videos_response::Result as VideoResult;
use kinetoscope::proto::video_classification_service_client::VideoClassificationServiceClient;
use kinetoscope::proto::{self, video};
use kinetoscope::server::code_name;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A video and what is right about it.
pub(crate) struct Video {
    pub(crate) name: String,
    pub(crate) content: Bytes,
    /// A score for each class.
    pub(crate) scores: Vec<f32>,
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A video in a message.
    Unary,
    /// A video in chunks.
    Upload,
    /// Four videos over a stream.
    Videos,
    /// Goes away in the midst.
    Cancels,
    /// Gives less time than it takes.
    Impatient,
    /// Sends half a video, then nothing.
    HalfUpload,
    /// Sends videos and takes no answers.
    SlowReader,
    /// Sends bytes that are no video.
    Garbage,
    /// Sends bytes that are no HTTP/2.
    Noise,
}

impl Kind {
    pub(crate) fn choose(random: &CounterStream) -> Self {
        match random.bits(0) % 20 {
            0..=7 => Self::Unary,
            8..=10 => Self::Upload,
            11 => Self::Videos,
            12..=13 => Self::Cancels,
            14..=15 => Self::Impatient,
            16 => Self::HalfUpload,
            17 => Self::SlowReader,
            18 => Self::Garbage,
            _ => Self::Noise,
        }
    }
}

/// Scores may differ by rounding only.
const TOLERANCE: f32 = 1e-5;

/// How long clients that hang do so.
const HANGS_FOR: Duration = Duration::from_secs(8);

const CHUNK_BYTES: usize = 64 << 10;

const VIDEOS_OF_A_STREAM: usize = 4;

/// What clients were told, and what is wrong about that.
#[derive(Default)]
pub(crate) struct Tally {
    told: BTreeMap<(Kind, &'static str), u64>,
    /// Milliseconds to the answers that patient clients got.
    latency: Option<Histogram<u64>>,
    pub(crate) faults: Vec<String>,
}

impl Tally {
    fn add(&mut self, kind: Kind, told: &'static str) {
        *self.told.entry((kind, told)).or_default() += 1;
    }

    fn answered_in(&mut self, time: Duration) {
        let latency = self.latency.get_or_insert_with(|| Histogram::new(3).expect("three digits are allowed"));
        latency.record(time.as_millis() as u64).expect("the histogram grows by itself");
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (key, count) in other.told {
            *self.told.entry(key).or_default() += count;
        }
        self.faults.extend(other.faults);
        match (&mut self.latency, other.latency) {
            (Some(latency), Some(other)) => latency.add(other).expect("the histogram grows by itself"),
            (latency @ None, other) => *latency = other,
            (Some(_), None) => {}
        }
    }

    /// How often anybody was told `told`.
    pub(crate) fn count(&self, told: &str) -> u64 {
        self.told.iter().filter(|((_, other), _)| *other == told).map(|(_, count)| count).sum()
    }

    pub(crate) fn print(&self) {
        println!("\n{:>8}  {:<12} told", "times", "client");
        for ((kind, told), count) in &self.told {
            println!("{count:>8}  {:<12} {told}", format!("{kind:?}"));
        }
        if let Some(latency) = &self.latency {
            let at = |quantile| latency.value_at_quantile(quantile);
            println!(
                "\nanswers to patient clients after {} ms (median), {} ms (90%), {} ms (99%), {} ms (longest)",
                at(0.5),
                at(0.9),
                at(0.99),
                latency.max()
            );
        }
    }
}

/// All clients share these.
pub(crate) struct Clients {
    pub(crate) connection: Connection,
    pub(crate) videos: Vec<Video>,
    /// Of patient calls.
    pub(crate) timeout: Duration,
}

impl Clients {
    /// One client's call, over a connection of its own: who misbehaves must hurt nobody else's.
    pub(crate) async fn call(&self, kind: Kind, index: u64, random: &CounterStream, tally: &mut Tally) {
        let video = &self.videos[index as usize % self.videos.len()];
        if kind == Kind::Noise {
            return self.noise(random, tally).await;
        }
        let mut client = match Client::connect(&self.connection, self.timeout).await {
            Ok(client) => client,
            Err(error) => return tally.faults.push(format!("{kind:?}: no connection: {error}")),
        };
        let short = Duration::from_millis(random.bits(1) % 400);
        let begun = Instant::now();
        match kind {
            Kind::Unary => {
                let answer = client.classify_video(video.content.clone(), every_label(), Some(self.timeout)).await;
                self.judge(kind, video, answer, begun, tally);
            }
            Kind::Upload => {
                let chunks = tokio_stream::iter(chunks(&video.content));
                let answer = client.classify_upload(chunks, every_label(), Some(self.timeout), |_| {}).await;
                self.judge(kind, video, answer, begun, tally);
            }
            Kind::Cancels => {
                let call = client.classify_video(video.content.clone(), every_label(), None);
                match tokio::time::timeout(short, call).await {
                    Ok(answer) => self.judge(kind, video, answer, begun, tally),
                    Err(_) => tally.add(kind, "(went away)"),
                }
            }
            Kind::Impatient => match client.classify_video(video.content.clone(), every_label(), Some(short)).await {
                Err(status) if status.code() == Code::DeadlineExceeded => tally.add(kind, "DEADLINE_EXCEEDED"),
                answer => self.judge(kind, video, answer, begun, tally),
            },
            Kind::Garbage => {
                let bytes = (0..video.content.len() as u64).map(|at| random.byte(at)).collect();
                match client.classify_video(bytes, every_label(), Some(self.timeout)).await {
                    Err(status) if status.code() == Code::InvalidArgument => tally.add(kind, "INVALID_ARGUMENT"),
                    Err(status) if is_refusal(&status) => tally.add(kind, "RESOURCE_EXHAUSTED"),
                    other => tally.faults.push(format!("garbage was answered with {other:?}")),
                }
            }
            Kind::Videos | Kind::HalfUpload | Kind::SlowReader | Kind::Noise => {
                drop(client);
                let (channel, _hang_up) = match self.connect().await {
                    Ok(connected) => connected,
                    Err(error) => return tally.faults.push(format!("{kind:?}: no connection: {error}")),
                };
                let client = VideoClassificationServiceClient::new(channel);
                match kind {
                    Kind::HalfUpload => self.half_upload(client, video, tally).await,
                    Kind::SlowReader => self.slow_reader(client, tally).await,
                    _ => self.videos(client, index, tally).await,
                }
            }
        }
    }

    /// A connection that ends with the guard: a channel alone, when dropped, still sends what its calls had begun.
    async fn connect(&self) -> anyhow::Result<(Channel, HangUp)> {
        let stream = TcpStream::connect(&self.connection.server).await?.into_std()?;
        let hang_up = HangUp(stream.try_clone()?);
        let mut stream = Some(TokioIo::new(TcpStream::from_std(stream)?));
        let connector = tower::service_fn(move |_| {
            std::future::ready::<std::io::Result<_>>(stream.take().ok_or_else(|| ErrorKind::NotConnected.into()))
        });
        let endpoint = Channel::from_shared(format!("http://{}", self.connection.server))?;
        Ok((endpoint.connect_with_connector(connector).await?, hang_up))
    }

    /// A right answer or a clear refusal; all else is a fault.
    fn judge(
        &self,
        kind: Kind,
        video: &Video,
        answer: Result<proto::VideoClassification, Status>,
        begun: Instant,
        tally: &mut Tally,
    ) {
        match answer {
            Ok(answer) if is_right(&answer, video) => {
                tally.add(kind, "ok");
                tally.answered_in(begun.elapsed());
            }
            Ok(answer) => tally.faults.push(format!("{kind:?}: wrong answer about {}: {answer:?}", video.name)),
            Err(status) if is_refusal(&status) => tally.add(kind, "RESOURCE_EXHAUSTED"),
            Err(status) => {
                tally.add(kind, code_name(status.code()));
                tally.faults.push(format!("{kind:?} of {} after {:?}: {status}", video.name, begun.elapsed()));
            }
        }
    }

    /// Each of the stream's videos is answered once.
    async fn videos(&self, mut client: VideoClassificationServiceClient<Channel>, index: u64, tally: &mut Tally) {
        let begun = Instant::now();
        let videos: Vec<_> =
            (0..VIDEOS_OF_A_STREAM).map(|offset| &self.videos[(index as usize + offset) % self.videos.len()]).collect();
        let requests: Vec<_> = videos.iter().enumerate().map(|(key, video)| keyed(key, video)).collect();
        let mut request = tonic::Request::new(tokio_stream::iter(requests));
        request.set_timeout(self.timeout * VIDEOS_OF_A_STREAM as u32);
        let mut waiting: HashMap<String, &Video> =
            videos.iter().enumerate().map(|(key, video)| (key.to_string(), *video)).collect();
        let mut answers = match client.classify_videos(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if is_refusal(&status) => return tally.add(Kind::Videos, "RESOURCE_EXHAUSTED"),
            Err(status) => return tally.faults.push(format!("Videos: {status}")),
        };
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    let Some(video) = waiting.remove(&answer.key) else {
                        tally.faults.push(format!("Videos: key {:?} was answered twice or never asked", answer.key));
                        continue;
                    };
                    match answer.result {
                        Some(VideoResult::Classification(answer)) => {
                            self.judge(Kind::Videos, video, Ok(answer), begun, tally);
                        }
                        Some(VideoResult::Error(error))
                            if error.code == Code::ResourceExhausted as i32 && error.retry_delay.is_some() =>
                        {
                            tally.add(Kind::Videos, "RESOURCE_EXHAUSTED");
                        }
                        other => tally.faults.push(format!("Videos: {} got {other:?}", video.name)),
                    }
                }
                Ok(None) if waiting.is_empty() => return,
                Ok(None) => {
                    return tally.faults.push(format!("Videos: {} videos were not answered", waiting.len()));
                }
                Err(status) if is_refusal(&status) => return tally.add(Kind::Videos, "RESOURCE_EXHAUSTED"),
                Err(status) => return tally.faults.push(format!("Videos: {status}")),
            }
        }
    }

    async fn half_upload(
        &self,
        mut client: VideoClassificationServiceClient<Channel>,
        video: &Video,
        tally: &mut Tally,
    ) {
        let (sender, messages) = mpsc::channel(16);
        let content = video.content.clone();
        let sending = async move {
            for chunk in chunks(&content.slice(..content.len() / 2)) {
                let message = proto::ClassifyVideoStreamRequest { payload: Some(Payload::Chunk(chunk)) };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
            sender.closed().await;
        };
        let call = async {
            let mut events = client.classify_video_stream(ReceiverStream::new(messages)).await?.into_inner();
            while events.message().await?.is_some() {}
            Ok::<(), Status>(())
        };
        let told = tokio::select! {
            told = call => told,
            () = async { sending.await; std::future::pending().await } => unreachable!("it is pending"),
            () = tokio::time::sleep(HANGS_FOR) => return tally.add(Kind::HalfUpload, "(went away)"),
        };
        match told {
            Err(status) if status.code() == Code::DeadlineExceeded => tally.add(Kind::HalfUpload, "DEADLINE_EXCEEDED"),
            Err(status) if is_refusal(&status) => tally.add(Kind::HalfUpload, "RESOURCE_EXHAUSTED"),
            other => tally.faults.push(format!("half an upload was answered with {other:?}")),
        }
    }

    async fn slow_reader(&self, mut client: VideoClassificationServiceClient<Channel>, tally: &mut Tally) {
        let requests: Vec<_> = self.videos.iter().cycle().take(32).enumerate().map(|(key, v)| keyed(key, v)).collect();
        let call = client.classify_videos(tokio_stream::iter(requests));
        let Ok(Ok(answers)) = tokio::time::timeout(self.timeout, call).await else {
            return tally.add(Kind::SlowReader, "(refused)");
        };
        tokio::time::sleep(HANGS_FOR).await;
        drop(answers);
        tally.add(Kind::SlowReader, "(went away)");
    }

    async fn noise(&self, random: &CounterStream, tally: &mut Tally) {
        let bytes: Vec<u8> = (0..4096).map(|at| random.byte(at)).collect();
        if let Ok(mut stream) = TcpStream::connect(&self.connection.server).await {
            // The server may hang up at any byte.
            let _ = stream.write_all(&bytes).await;
            tokio::time::sleep(Duration::from_millis(random.bits(1) % 2000)).await;
        }
        tally.add(Kind::Noise, "(went away)");
    }
}

/// Ends a connection when dropped.
struct HangUp(std::net::TcpStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // The server may have ended it before.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn every_label() -> proto::ClassificationOptions {
    proto::ClassificationOptions { top_k: Some(0), ..Default::default() }
}

fn keyed(key: usize, video: &Video) -> proto::ClassifyVideosRequest {
    proto::ClassifyVideosRequest {
        key: key.to_string(),
        video: Some(proto::Video { source: Some(video::Source::Content(video.content.clone())) }),
        options: Some(every_label()),
    }
}

fn chunks(content: &Bytes) -> Vec<Bytes> {
    (0..content.len()).step_by(CHUNK_BYTES).map(|at| content.slice(at..content.len().min(at + CHUNK_BYTES))).collect()
}

fn is_right(answer: &proto::VideoClassification, video: &Video) -> bool {
    let near = |label: &proto::LabelScore| {
        video.scores.get(label.index as usize).is_some_and(|score| (score - label.score).abs() <= TOLERANCE)
    };
    answer.labels.len() == video.scores.len() && answer.labels.iter().all(near) && !answer.partial
}

/// Whether a client was told that the server is full, and when to come back.
fn is_refusal(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.get_details_retry_info().is_some()
}
