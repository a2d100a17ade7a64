//! Starts servers on free ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kinetoscope::classify::Classifier;
use kinetoscope::engine::{Engine, EngineConfig, Executor, ExecutorError, Outputs};
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::proto::video_classification_service_client::VideoClassificationServiceClient;
use kinetoscope::proto::{self, video};
use kinetoscope::repository::Repository;
use kinetoscope::server::{Listeners, Pace, ServeOptions, Services, serve};
use kinetoscope::video::{Isolation, Limits, PoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::{Request, Version};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A server in this process. Dropping it without [`stop`](Self::stop) leaves it to the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) http_address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<Result<(), tonic::transport::Error>>,
}

pub(crate) type Client = VideoClassificationServiceClient<Channel>;

impl Server {
    /// A server with the built-in model and small limits that tests can exceed.
    pub(crate) async fn start() -> Self {
        let engine = Engine::start(builtin::model().unwrap(), engine_config(), &Metrics::default()).unwrap();
        Self::with_models(vec![engine], limits(), ServeOptions::default()).await
    }

    pub(crate) async fn with_models(models: Vec<Engine>, limits: Limits, options: ServeOptions) -> Self {
        Self::with_repository(Arc::new(Repository::of(models)), limits, options).await
    }

    pub(crate) async fn with_repository(models: Arc<Repository>, limits: Limits, options: ServeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_address = http.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let pool = PoolOptions { threads: 2, open_videos: 8 };
        let classifier = Classifier::new(limits, Isolation::None, pool, Arc::clone(&metrics));
        let services = Services { classifier, models, metrics };
        let listeners = Listeners { grpc: listener.into(), http: Some(http) };
        let done = tokio::spawn(serve(listeners, services, options, async {
            let _ = stopped.await;
        }));
        Self { address, http_address, stop, done }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(self.channel().await).max_encoding_message_size(usize::MAX)
    }

    /// A call whose body is what `frames` bring. Gives the answers, and the status.
    async fn raw(&self, call: &str, frames: mpsc::Receiver<Bytes>) -> (Bytes, Status) {
        let frames = ReceiverStream::new(frames).map(|bytes| Ok::<_, Status>(http_body::Frame::data(bytes)));
        let body = tonic::body::Body::new(http_body_util::StreamBody::new(frames));
        let path = format!("http://{}/kinetoscope.v1.VideoClassificationService/{call}", self.address);
        let mut message = Request::post(path).header("content-type", "application/grpc").body(body).unwrap();
        *message.version_mut() = Version::HTTP_2;
        let mut channel = self.channel().await;
        let response = tower::ServiceExt::ready(&mut channel).await.unwrap();
        let response = tower::Service::call(response, message).await.unwrap();
        if let Some(status) = Status::from_header_map(response.headers()) {
            return (Bytes::new(), status);
        }
        let end = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        let status = Status::from_header_map(end.trailers().unwrap()).unwrap();
        (end.to_bytes(), status)
    }

    /// The status of a call that brings no answer.
    pub(crate) async fn raw_call(&self, call: &str, frames: mpsc::Receiver<Bytes>) -> Status {
        self.raw(call, frames).await.1
    }

    /// The answers of a call that ends well.
    pub(crate) async fn raw_answers<M: prost::Message + Default>(
        &self,
        call: &str,
        frames: mpsc::Receiver<Bytes>,
    ) -> Vec<M> {
        let (mut bytes, status) = self.raw(call, frames).await;
        assert_eq!(status.code(), Code::Ok, "{status}");
        let mut answers = Vec::new();
        while bytes.has_remaining() {
            assert_eq!(bytes.get_u8(), 0, "answers are not compressed");
            let length = bytes.get_u32() as usize;
            answers.push(M::decode(bytes.split_to(length)).unwrap());
        }
        answers
    }

    /// Status code and body of a page of its HTTP port.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.http_address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// A metric's value; 0 if it was never set.
    pub(crate) async fn metric(&self, name_and_labels: &str) -> f64 {
        let (_, text) = self.page("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits, but not long, until no call, decode or queued clip is left and all memory for messages is free.
    pub(crate) async fn assert_nothing_left_behind(&self) {
        const LEFT: [&str; 10] = [
            "kinetoscope_requests_in_flight{method=\"ClassifyVideo\"}",
            "kinetoscope_requests_in_flight{method=\"ClassifyVideoStream\"}",
            "kinetoscope_requests_in_flight{method=\"ClassifyVideos\"}",
            "kinetoscope_requests_in_flight{method=\"POST /v1/videos:classify\"}",
            "kinetoscope_requests_in_flight{method=\"POST /v2/models/{name}/infer\"}",
            "kinetoscope_requests_in_flight{method=\"ModelInfer\"}",
            "kinetoscope_requests_in_flight{method=\"ModelStreamInfer\"}",
            "kinetoscope_decodes{state=\"open\"}",
            "kinetoscope_queue_clips{model=\"camera-motion\"}",
            "kinetoscope_buffered_bytes",
        ];
        let mut left = Vec::new();
        for _ in 0..100 {
            left.clear();
            for name in LEFT {
                let value = self.metric(name).await;
                if value != 0.0 {
                    left.push((name, value));
                }
            }
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("left behind: {left:?}");
    }

    /// Asks the server to stop; the handle resolves when it has.
    pub(crate) fn stop(self) -> JoinHandle<Result<(), tonic::transport::Error>> {
        self.stop.send(()).unwrap();
        self.done
    }
}

/// Clients may be silent for so long.
pub(crate) fn idle_timeout(idle_timeout: Duration) -> Pace {
    Pace { idle_timeout, ..Pace::default() }
}

pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig::new(1, EngineConfig::DEFAULT_MAX_BATCH)
}

pub(crate) fn limits() -> Limits {
    Limits { max_bytes: 2 << 20, max_frames: 400, ..Limits::default() }
}

/// A model that takes its time and finds all classes equally likely.
pub(crate) struct Slow(pub(crate) Duration);

impl Executor for Slow {
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
        // Not for the clips of the warm-up, which are black.
        if clips.iter().any(|clip| clip.iter().any(|&value| value > 0)) {
            std::thread::sleep(self.0);
        }
        Ok(Outputs { logits: vec![0.0; clips.len() * builtin::spec().labels.len()], embeddings: Vec::new() })
    }

    fn run_normalised(&mut self, _: &[&[f32]]) -> Result<Outputs, ExecutorError> {
        panic!("no test sends normalised clips to it")
    }
}

pub(crate) fn slow_engine(per_batch: Duration) -> Engine {
    let config = EngineConfig::new(1, 1);
    let build = move || -> Result<Box<dyn Executor>, ExecutorError> { Ok(Box::new(Slow(per_batch))) };
    Engine::with_workers(builtin::spec(), config, 1, Box::new(build), &Metrics::default()).unwrap()
}

/// A model whose device is broken.
pub(crate) fn broken_engine() -> Engine {
    struct Broken;
    impl Executor for Broken {
        fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
            let warm_up = clips.iter().all(|clip| clip.iter().all(|&value| value == 0));
            if warm_up { Ok(Outputs::default()) } else { Err(ExecutorError::Reload("the device is lost".to_owned())) }
        }

        fn run_normalised(&mut self, _: &[&[f32]]) -> Result<Outputs, ExecutorError> {
            Err(ExecutorError::Reload("the device is lost".to_owned()))
        }
    }
    let build = || -> Result<Box<dyn Executor>, ExecutorError> { Ok(Box::new(Broken)) };
    Engine::with_workers(builtin::spec(), EngineConfig::new(1, 1), 1, Box::new(build), &Metrics::default()).unwrap()
}

pub(crate) fn request(content: impl Into<Bytes>) -> proto::ClassifyVideoRequest {
    let video = proto::Video { source: Some(video::Source::Content(content.into())) };
    proto::ClassifyVideoRequest { video: Some(video), options: None }
}

/// The stable reason in a status, with its code.
pub(crate) fn reason(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().expect("every error carries a google.rpc.ErrorInfo");
    assert_eq!(info.domain, "kinetoscope");
    (status.code(), info.reason)
}
