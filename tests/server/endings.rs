//! However a call ends, the client learns the right code and the server keeps nothing of it: every way to send a video,
//! by every way to end.

use std::time::{Duration, Instant};

use kinetoscope::proto::classify_video_stream_response::Event;
use kinetoscope::proto::classify_videos_response::Result as Answer;
use kinetoscope::server::{Pace, ServeOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::inference;
use crate::media::Media;
use crate::streams::{chunk, keyed};
use crate::support::{Client, Server, broken_engine, idle_timeout, limits, reason, request, slow_engine};

/// A way to send a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Message,
    Chunks,
    Many,
    Inference,
    InferenceStream,
}

const WAYS: [Way; 5] = [Way::Message, Way::Chunks, Way::Many, Way::Inference, Way::InferenceStream];

/// Ways whose videos wait for a place instead of being refused.
const WAITING: [Way; 2] = [Way::Many, Way::InferenceStream];

/// Sends a video and gives the code of the answer, of the stream or of the video within it.
async fn send(channel: Channel, way: Way, video: Vec<u8>, timeout: Option<Duration>) -> Code {
    fn call<T>(message: T, timeout: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        request
    }
    let mut client = Client::new(channel.clone());
    let mut inference = inference::Client::new(channel);
    let outcome = async {
        match way {
            Way::Inference => {
                let request = call(inference::videos("it", &[&video]), timeout);
                inference.model_infer(request).await.map(|_| Code::Ok)
            }
            Way::InferenceStream => {
                let messages = tokio_stream::iter(vec![inference::videos("it", &[&video])]);
                let mut answers = inference.model_stream_infer(call(messages, timeout)).await?.into_inner();
                let answer = answers.message().await?.expect("an answer for the request");
                assert!(answers.message().await?.is_none());
                // The protocol has no code in a stream.
                Ok(if answer.error_message.is_empty() { Code::Ok } else { Code::Internal })
            }
            Way::Message => client.classify_video(call(request(video), timeout)).await.map(|_| Code::Ok),
            Way::Chunks => {
                let messages = tokio_stream::iter(vec![chunk(video)]);
                let mut events = client.classify_video_stream(call(messages, timeout)).await?.into_inner();
                let mut last = None;
                while let Some(event) = events.message().await? {
                    last = event.event;
                }
                assert!(matches!(last, Some(Event::Classification(_))), "a stream that ends well ends with the answer");
                Ok(Code::Ok)
            }
            Way::Many => {
                let messages = tokio_stream::iter(vec![keyed("it", video)]);
                let mut answers = client.classify_videos(call(messages, timeout)).await?.into_inner();
                let answer = answers.message().await?.expect("an answer for the video");
                assert!(answers.message().await?.is_none());
                Ok(match answer.result.unwrap() {
                    Answer::Classification(_) => Code::Ok,
                    Answer::Error(error) => error.code.into(),
                })
            }
        }
    };
    outcome.await.unwrap_or_else(|status: tonic::Status| match status.code() {
        // What the client's own timer says if it is the first.
        Code::Cancelled if status.message() == "Timeout expired" => Code::DeadlineExceeded,
        code => code,
    })
}

fn video(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -t 4 -pix_fmt yuv420p";
    std::fs::read(media.make("video.mp4", args)).unwrap()
}

async fn slow_server(per_clip: u64, options: ServeOptions) -> Server {
    Server::with_models(vec![slow_engine(Duration::from_millis(per_clip))], limits(), options).await
}

#[tokio::test]
async fn ok() {
    let media = Media::new();
    let server = Server::start().await;
    for way in WAYS {
        assert_eq!(send(server.channel().await, way, video(&media), None).await, Code::Ok, "{way:?}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn the_client_cancels() {
    let media = Media::new();
    let server = slow_server(200, ServeOptions::default()).await;
    for way in WAYS {
        let sending = tokio::spawn(send(server.channel().await, way, video(&media), None));
        while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sending.abort();
        let aborted = Instant::now();
        server.assert_nothing_left_behind().await;
        // A hundred milliseconds for the server, the rest for asking it.
        assert!(aborted.elapsed() < Duration::from_millis(400), "{way:?}: {:?}", aborted.elapsed());
    }
}

#[tokio::test]
async fn the_client_vanishes_in_the_middle_of_an_upload() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let (messages, stream) = mpsc::channel(4);
    messages.send(chunk(video[..video.len() / 2].to_vec())).await.unwrap();
    let events = server.client().await.classify_video_stream(ReceiverStream::new(stream)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop((events, messages));
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn the_deadline_passes() {
    let media = Media::new();
    let server = slow_server(100, ServeOptions::default()).await;
    for way in WAYS {
        let code = send(server.channel().await, way, video(&media), Some(Duration::from_millis(250))).await;
        assert_eq!(code, Code::DeadlineExceeded, "{way:?}");
        server.assert_nothing_left_behind().await;
    }
}

#[tokio::test]
async fn the_server_fails() {
    let media = Media::new();
    let server = Server::with_models(vec![broken_engine()], limits(), ServeOptions::default()).await;
    for way in WAYS {
        assert_eq!(send(server.channel().await, way, video(&media), None).await, Code::Internal, "{way:?}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn the_server_stops() {
    let media = Media::new();
    for way in WAYS {
        let server = slow_server(60, ServeOptions::default()).await;
        let sending = tokio::spawn(send(server.channel().await, way, video(&media), None));
        while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stopped = server.stop();
        assert_eq!(sending.await.unwrap(), Code::Ok, "{way:?}: what was accepted is answered");
        stopped.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_server_is_full() {
    let media = Media::new();
    for way in WAYS {
        let server = slow_server(100, ServeOptions { max_requests: 1, ..ServeOptions::default() }).await;
        let first = tokio::spawn(send(server.channel().await, Way::Message, video(&media), None));
        while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Others are refused with the time to try again.
        let expected = if WAITING.contains(&way) { Code::Ok } else { Code::ResourceExhausted };
        assert_eq!(send(server.channel().await, way, video(&media), None).await, expected, "{way:?}");
        assert_eq!(first.await.unwrap(), Code::Ok);
        server.assert_nothing_left_behind().await;
    }
}

#[tokio::test]
async fn a_client_that_falls_silent_in_a_message_frees_its_room() {
    let options = ServeOptions { pace: idle_timeout(Duration::from_millis(200)), ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    for call in ["ClassifyVideo", "ClassifyVideoStream", "ClassifyVideos"] {
        let (sender, frames) = mpsc::channel(1);
        // The prefix announces a thousand bytes; ten come.
        sender.send([&[0, 0, 0, 3, 232][..], &[0; 10]].concat().into()).await.unwrap();
        let status = server.raw_call(call, frames).await;
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_IDLE".to_owned()), "{call}");
        server.assert_nothing_left_behind().await;
        drop(sender);
    }
}

/// Sends `bytes` again and again, until the call ends; gives its status.
async fn drip(server: &Server, call: &str, first: &'static [u8], bytes: &'static [u8]) -> tonic::Status {
    let (sender, frames) = mpsc::channel(1);
    let dripping = async {
        let _ = sender.send(first.into()).await;
        let mut period = tokio::time::interval(Duration::from_millis(20));
        while sender.send(bytes.into()).await.is_ok() {
            period.tick().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        status = server.raw_call(call, frames) => status,
        status = dripping => status,
    }
}

/// What announces a message of a million bytes.
const A_MILLION: &[u8] = &[0, 0, 15, 66, 64];

#[tokio::test]
async fn a_client_that_sends_drop_by_drop_is_ended() {
    let pace = Pace { idle_timeout: Duration::from_millis(200), min_rate: 100_000, ..Pace::default() };
    let options = ServeOptions { pace, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    for call in ["ClassifyVideo", "ClassifyVideoStream", "ClassifyVideos"] {
        let status = drip(&server, call, A_MILLION, &[0; 10]).await;
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_TOO_SLOW".to_owned()), "{call}");
    }
    // A chunk of a byte is a message of three.
    let status = drip(&server, "ClassifyVideoStream", &[], &[0, 0, 0, 0, 3, 18, 1, 7]).await;
    assert_eq!(reason(&status).1, "CLIENT_TOO_SLOW");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_message_that_takes_too_long_is_ended() {
    let pace = Pace { message_timeout: Duration::from_millis(300), min_rate: 0, ..Pace::default() };
    let options = ServeOptions { pace, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    for call in ["ClassifyVideo", "ClassifyVideoStream", "ClassifyVideos"] {
        let status = drip(&server, call, A_MILLION, &[0; 10]).await;
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_TOO_SLOW".to_owned()), "{call}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn empty_messages_are_silence() {
    let pace = Pace { idle_timeout: Duration::from_millis(200), min_rate: 0, ..Pace::default() };
    let options = ServeOptions { pace, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    // After a first chunk, of a byte.
    let status = drip(&server, "ClassifyVideoStream", &[0, 0, 0, 0, 3, 18, 1, 7], &[0, 0, 0, 0, 0]).await;
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_IDLE".to_owned()));
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn an_upload_that_falls_silent_frees_its_place() {
    let media = Media::new();
    let pace = idle_timeout(Duration::from_millis(200));
    let options = ServeOptions { pace, max_requests: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 30 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let (sender, chunks) = mpsc::channel(1);
    sender.send(chunk(video[..video.len() / 2].to_vec())).await.unwrap();
    let mut client = server.client().await;
    let mut events = client.classify_video_stream(ReceiverStream::new(chunks)).await.unwrap().into_inner();
    let status = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("half a video is no answer"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "CLIENT_IDLE".to_owned()));
    assert!(client.classify_video(request(video)).await.is_ok(), "the only place is free");
    drop(sender);
}

#[tokio::test]
async fn a_stream_of_videos_may_pause_between_them() {
    let media = Media::new();
    let options = ServeOptions { pace: idle_timeout(Duration::from_millis(200)), ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let (sender, videos) = mpsc::channel(1);
    let mut client = server.client().await;
    let mut answers = client.classify_videos(ReceiverStream::new(videos)).await.unwrap().into_inner();
    for key in 0..2 {
        sender.send(keyed(key, video.clone())).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Classification(_))), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
}
