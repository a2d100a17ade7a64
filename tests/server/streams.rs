//! `ClassifyVideoStream` and `ClassifyVideos`: answers while bytes arrive, and many videos over one stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kinetoscope::proto::classify_video_stream_request::Payload;
use kinetoscope::proto::classify_video_stream_response::Event;
use kinetoscope::proto::classify_videos_response::Result as Answer;
use kinetoscope::proto::{
    ClassificationOptions, ClassifyVideoRequest, ClassifyVideoStreamRequest, ClassifyVideosRequest, Priority,
    SegmentMode, Video, VideoClassification, video,
};
use kinetoscope::server::ServeOptions;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::Code;
use tonic::transport::Channel;

use crate::media::Media;
use crate::support::{Client, Server, idle_timeout, limits, reason, request, slow_engine};

pub(crate) fn chunk(bytes: impl Into<Bytes>) -> ClassifyVideoStreamRequest {
    ClassifyVideoStreamRequest { payload: Some(Payload::Chunk(bytes.into())) }
}

pub(crate) fn keyed(key: impl ToString, content: impl Into<Bytes>) -> ClassifyVideosRequest {
    let video = Video { source: Some(video::Source::Content(content.into())) };
    ClassifyVideosRequest { key: key.to_string(), video: Some(video), options: None }
}

fn make(media: &Media, name: &str, args: &str) -> Vec<u8> {
    let input = "-f lavfi -i testsrc2=size=160x120:rate=25 -pix_fmt yuv420p";
    std::fs::read(media.make(name, &format!("{input} {args}"))).unwrap()
}

/// Uploads in chunks; gives the number of clip events and the answer.
async fn upload(server: &Server, video: &[u8], options: Option<ClassificationOptions>) -> (usize, VideoClassification) {
    let options = options.map(|options| ClassifyVideoStreamRequest { payload: Some(Payload::Options(options)) });
    let chunks = video.chunks(10_000).map(|part| chunk(part.to_vec()));
    let messages: Vec<_> = options.into_iter().chain(chunks).collect();
    let mut events =
        server.client().await.classify_video_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut clips, mut answer) = (0, None);
    while let Some(event) = events.message().await.unwrap() {
        assert!(answer.is_none(), "nothing comes after the answer");
        match event.event.unwrap() {
            Event::Clip(clip) => {
                assert!(clip.labels.len() == 5 && clip.end.unwrap().nanos != clip.start.unwrap().nanos);
                clips += 1;
            }
            Event::Progress(_) => {}
            Event::Classification(classification) => answer = Some(classification),
        }
    }
    (clips, answer.expect("an answer"))
}

#[tokio::test]
async fn an_upload_in_chunks_gets_the_answer_of_one_message() {
    let media = Media::new();
    let server = Server::start().await;
    for (name, args) in [
        ("index-last.mp4", "-t 3"),
        ("first.mp4", "-t 3 -movflags +faststart"),
        ("video.mkv", "-t 3"),
        // FFmpeg goes back to the beginning of these.
        ("video.gif", "-t 3"),
        ("indexed.flv", "-t 3 -c:v libx264 -flvflags add_keyframe_index"),
    ] {
        let video = make(&media, name, args);
        let options =
            ClassificationOptions { segments: SegmentMode::Merged.into(), embedding: true, ..Default::default() };
        let whole = ClassifyVideoRequest { options: Some(options.clone()), ..request(video.clone()) };
        let whole = server.client().await.classify_video(whole).await.unwrap().into_inner().classification.unwrap();
        let (clips, chunked) = upload(&server, &video, Some(options)).await;
        assert_eq!((clips, &chunked), (5, &whole), "{name}");
        assert!(!chunked.embedding.is_empty() && chunked.embedding.iter().all(|value| value.is_finite()));
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn first_clips_are_answered_while_the_rest_is_on_its_way() {
    let media = Media::new();
    let server = Server::start().await;
    let video = make(&media, "video.mkv", "-t 8 -g 10");
    let (first, rest) = video.split_at(video.len() / 2);
    let (messages, stream) = mpsc::channel(4);
    messages.send(chunk(first.to_vec())).await.unwrap();
    let mut events =
        server.client().await.classify_video_stream(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let early = loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Clip(clip) => break clip,
            Event::Progress(progress) => assert_eq!(progress.received_bytes, first.len() as u64),
            Event::Classification(_) => panic!("half of the video is missing"),
        }
    };
    assert_eq!(early.start.unwrap(), prost_types::Duration { seconds: 0, nanos: 0 });
    messages.send(chunk(rest.to_vec())).await.unwrap();
    drop(messages);
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    let Some(Event::Classification(answer)) = last else { panic!("the answer comes last") };
    assert_eq!(answer.video.unwrap().frames, 200);
}

/// Uploads of which half has come and nothing more will, and what keeps them open.
async fn stalled_uploads(server: &Server, video: &[u8], count: usize) -> Vec<impl Sized> {
    let mut stalled = Vec::new();
    for _ in 0..count {
        let (messages, stream) = mpsc::channel(1);
        messages.send(chunk(video[..video.len() / 2].to_vec())).await.unwrap();
        let events = server.client().await.classify_video_stream(ReceiverStream::new(stream)).await.unwrap();
        stalled.push((messages, events));
    }
    stalled
}

#[tokio::test]
async fn what_is_here_waits_for_no_upload_that_is_not() {
    let media = Media::new();
    let video = make(&media, "video.mkv", "-t 1");
    // As many requests as uploads stall, and more uploads than the pool opens of those that are coming.
    let options = ServeOptions { max_requests: 8, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let stalled = stalled_uploads(&server, &video, 8).await;
    while server.metric("kinetoscope_decodes{state=\"waiting\"}").await < 2.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let whole = async {
        let (_, answer) = upload(&server, &video, None).await;
        assert_eq!(answer.video.unwrap().frames, 25);
        let mut events =
            server.client().await.classify_video_stream(tokio_stream::iter([chunk(video.clone())])).await?.into_inner();
        while events.message().await?.is_some() {}
        server.client().await.classify_video(request(video.clone())).await
    };
    tokio::time::timeout(Duration::from_secs(120), whole).await.expect("nobody waits for the slow ones").unwrap();
    assert_eq!(server.metric("kinetoscope_requests_in_flight{method=\"ClassifyVideoStream\"}").await, 8.0);
    drop(stalled);
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn uploads_beyond_the_limit_are_refused() {
    let media = Media::new();
    let video = make(&media, "video.mkv", "-t 1");
    let options = ServeOptions { max_uploads: 2, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let stalled = stalled_uploads(&server, &video, 2).await;
    let mut third =
        server.client().await.classify_video_stream(tokio_stream::iter([chunk(video.clone())])).await.unwrap();
    let refused = third.get_mut().message().await.unwrap_err();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_UPLOADS".to_owned()));
    drop(stalled);
    server.assert_nothing_left_behind().await;
    upload(&server, &video, None).await;
}

#[tokio::test]
async fn messages_that_announce_much_and_bring_little_take_no_memory_from_others() {
    let media = Media::new();
    let mut video = make(&media, "video.mp4", "-t 1");
    video.resize(1_500_000, 0);
    // Room for four such messages.
    let options = ServeOptions { message_memory: 8 << 20, ..ServeOptions::default() };
    let server = Arc::new(Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await);
    let mut open = Vec::new();
    for call in ["ClassifyVideo", "ClassifyVideos"].into_iter().cycle().take(20) {
        let (sender, frames) = mpsc::channel(1);
        // Two million bytes.
        sender.send(vec![0, 0, 30, 132, 128, 7].into()).await.unwrap();
        let server = Arc::clone(&server);
        open.push((sender, tokio::spawn(async move { server.raw_call(call, frames).await })));
    }
    while server.metric("kinetoscope_buffered_bytes").await < 20.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..3 {
        server.client().await.classify_video(request(video.clone())).await.unwrap();
        let messages = tokio_stream::iter([keyed("it", video.clone())]);
        let mut answers = server.client().await.classify_videos(messages).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Classification(_))), "{answer:?}");
    }
    open.into_iter().for_each(|(_, call)| call.abort());
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn an_upload_over_the_limit_is_refused_while_it_arrives() {
    let server = Server::start().await;
    let (messages, stream) = mpsc::channel(4);
    let sending = tokio::spawn(async move { while messages.send(chunk(vec![0x47; 100_000])).await.is_ok() {} });
    let mut events =
        server.client().await.classify_video_stream(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let refused = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an endless upload got an answer"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    sending.await.unwrap();
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn many_videos_are_answered_by_key_and_fail_alone() {
    let media = Media::new();
    let server = Server::start().await;
    let good = make(&media, "good.mp4", "-t 1");
    let mut messages: Vec<_> = (0..20).map(|index| keyed(index, good.clone())).collect();
    messages.insert(3, keyed("bad", b"no video at all".to_vec()));
    messages.insert(9, ClassifyVideosRequest { key: "none".to_owned(), ..Default::default() });
    let mut answers = server.client().await.classify_videos(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut by_key = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(by_key.insert(answer.key, answer.result.unwrap()).is_none(), "one answer a key");
    }
    assert_eq!(by_key.len(), 22);
    for (key, answer) in by_key {
        match answer {
            Answer::Classification(answer) => assert_eq!(answer.video.unwrap().frames, 25, "{key}"),
            Answer::Error(error) => {
                let expected = if key == "bad" { "NOT_A_VIDEO" } else { "VIDEO_MISSING" };
                assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, expected), "{key}");
            }
        }
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_read_no_further() {
    let media = Media::new();
    let options = ServeOptions { videos_per_stream: 2, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(1))], limits(), options).await;
    let video = Bytes::from(make(&media, "video.mp4", "-t 0.2"));
    let (messages, stream) = mpsc::unbounded_channel();
    for index in 0..500 {
        messages.send(keyed(index, video.clone())).unwrap();
    }
    // The client's side buffers a few answers only.
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(4096).connect().await.unwrap();
    let mut answers =
        Client::new(channel).classify_videos(UnboundedReceiverStream::new(stream)).await.unwrap().into_inner();
    let mut before = -1.0;
    // Until nothing moves any more.
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let now = server.metric("kinetoscope_video_bytes_total").await;
        if now == before {
            break;
        }
        before = now;
    }
    let read = before / video.len() as f64;
    assert!(read < 300.0, "{read} videos were read though nobody took an answer");
    drop(messages);
    let mut count = 0;
    while answers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 500, "and all are answered when somebody does");
}

#[tokio::test]
async fn messages_beyond_the_memory_for_them_are_refused_or_wait() {
    let media = Media::new();
    let video = make(&media, "video.mp4", "-t 1");
    // Room for one message of up to 2 MiB.
    let options = ServeOptions { message_memory: 0, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(300))], limits(), options).await;
    let mut padded = video.clone();
    padded.resize(1_500_000, 0);
    let mut client = server.client().await;
    let first = tokio::spawn({
        let padded = padded.clone();
        async move { client.classify_video(request(padded)).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let refused = server.client().await.classify_video(request(padded.clone())).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_BYTES".to_owned()));
    assert_eq!(server.metric("kinetoscope_rejected_total{reason=\"message_memory\"}").await, 1.0);
    let messages = tokio_stream::iter(vec![keyed(1, padded.clone()), keyed(2, padded)]);
    let mut answers = server.client().await.classify_videos(messages).await.unwrap().into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Classification(_))), "{answer:?}");
    }
    first.await.unwrap().unwrap();
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn streams_leave_a_quarter_of_the_memory_to_single_calls() {
    let media = Media::new();
    let mut video = make(&media, "video.mp4", "-t 1");
    video.resize(1_500_000, 0);
    // Room for five such messages, of which streams may have four.
    let options = ServeOptions { message_memory: 8 << 20, videos_per_stream: 8, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(500))], limits(), options).await;
    let messages: Vec<_> = (0..8).map(|index| keyed(index, video.clone())).collect();
    let mut answers = server.client().await.classify_videos(tokio_stream::iter(messages)).await.unwrap().into_inner();
    while server.metric("kinetoscope_buffered_bytes").await < 4.0 * 1_500_000.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.client().await.classify_video(request(video)).await.unwrap();
    for _ in 0..8 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Classification(_))), "{answer:?}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn waiting_for_memory_is_no_silence_of_the_client() {
    let media = Media::new();
    let mut video = make(&media, "video.mp4", "-t 1");
    video.resize(1_500_000, 0);
    // Room for one message of up to 2 MiB, held for longer than a client may be silent.
    let pace = idle_timeout(Duration::from_millis(300));
    let options = ServeOptions { message_memory: 0, pace, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_secs(1))], limits(), options).await;
    let mut client = server.client().await;
    let first = tokio::spawn({
        let video = video.clone();
        async move { client.classify_video(request(video)).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (_, answer) = upload(&server, &video, None).await;
    assert_eq!(answer.video.unwrap().frames, 25);
    first.await.unwrap().unwrap();
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_video_of_high_priority_passes_those_of_low_that_came_first() {
    let media = Media::new();
    let video = make(&media, "video.mp4", "-t 1");
    let options = ServeOptions { videos_per_stream: 40, ..ServeOptions::default() };
    // Two clips of a tenth of a second for each of 40 videos.
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(100))], limits(), options).await;
    let of = |priority: Priority| Some(ClassificationOptions { priority: priority.into(), ..Default::default() });
    let messages: Vec<_> = (0..40)
        .map(|index| ClassifyVideosRequest { options: of(Priority::Low), ..keyed(index, video.clone()) })
        .collect();
    let mut answers = server.client().await.classify_videos(tokio_stream::iter(messages)).await.unwrap().into_inner();
    while server.metric("kinetoscope_decodes{state=\"waiting\"}").await < 10.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = std::time::Instant::now();
    let urgent = ClassifyVideoRequest { options: of(Priority::High), ..request(video) };
    server.client().await.classify_video(urgent).await.unwrap();
    let after = begun.elapsed();
    let mut done = 0;
    while let Ok(Some(answer)) =
        tokio::time::timeout(Duration::from_millis(50), answers.message()).await.unwrap_or(Ok(None))
    {
        assert!(matches!(answer.result, Some(Answer::Classification(_))));
        done += 1;
    }
    eprintln!("{after:?}, {done} of 40 were done");
    assert!(done < 16, "{done} of 40 came first");
}

#[tokio::test]
async fn a_stream_that_is_made_to_wait_holds_up_no_other_call_of_its_connection() {
    let media = Media::new();
    let mut video = make(&media, "video.mp4", "-t 0.5");
    video.resize(1_900_000, 0);
    let options = ServeOptions { videos_per_stream: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(500))], limits(), options).await;
    let messages: Vec<_> = (0..8).map(|index| keyed(index, video.clone())).collect();
    let mut client = server.client().await;
    let mut answers = client.classify_videos(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut answered = 0;
    let other = client.classify_video(request(video));
    tokio::pin!(other);
    loop {
        tokio::select! {
            answer = &mut other => {
                answer.unwrap();
                break;
            }
            answer = answers.message() => {
                answer.unwrap().expect("the other call is answered before the last of the stream");
                answered += 1;
            }
        }
    }
    assert!(answered < 6, "it waited for {answered} of 8 videos");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let options = ServeOptions { max_streams: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let open = async || {
        let (messages, stream) = mpsc::unbounded_channel();
        let answers = server.client().await.classify_videos(UnboundedReceiverStream::new(stream)).await?;
        Ok::<_, tonic::Status>((messages, answers.into_inner()))
    };
    let (messages, mut answers) = open().await.unwrap();
    let refused = open().await.unwrap_err();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned()));
    drop(messages);
    assert!(answers.message().await.unwrap().is_none());
    assert!(open().await.is_ok(), "the place of a stream that ended is free");
}

#[tokio::test]
async fn a_client_that_takes_no_answers_for_long_frees_its_places() {
    let media = Media::new();
    let options = ServeOptions {
        videos_per_stream: 2,
        max_streams: 1,
        pace: idle_timeout(Duration::from_millis(300)),
        ..ServeOptions::default()
    };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let video = Bytes::from(make(&media, "video.mp4", "-t 0.2"));
    let messages = tokio_stream::iter((0..500).map(move |index| keyed(index, video.clone())));
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(4096).connect().await.unwrap();
    let mut answers = Client::new(channel).classify_videos(messages).await.unwrap().into_inner();
    let other = async || server.client().await.classify_videos(tokio_stream::iter([])).await;
    let give_up = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(refused) = other().await {
        assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned()));
        assert!(tokio::time::Instant::now() < give_up, "its place stays taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Those that were on their way can still be taken.
    let status = loop {
        match answers.message().await {
            Ok(answer) => assert!(answer.is_some(), "the stream ended as if all were answered"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_IDLE".to_owned()));
    drop(answers);
    server.assert_nothing_left_behind().await;
}
