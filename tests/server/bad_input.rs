//! Whatever is sent, the answer is right or a clear refusal, and the server goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use kinetoscope::proto;
use kinetoscope::proto::ClassifyVideosResponse;
use kinetoscope::proto::classify_videos_response::Result as Answer;
use kinetoscope::server::ServeOptions;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::inference;
use crate::media::Media;
use crate::streams::keyed;
use crate::support::{Server, limits, reason, request, slow_engine};

async fn refusal(server: &Server, content: Vec<u8>) -> (Code, String) {
    reason(&server.client().await.classify_video(request(content)).await.unwrap_err())
}

#[tokio::test]
async fn what_is_no_video_is_the_callers_fault_and_named() {
    let media = Media::new();
    let server = Server::start().await;
    let sound = media.make("sound.m4a", "-f lavfi -i sine=duration=1");
    let image = media.make("image.png", "-f lavfi -i testsrc2=size=64x64 -frames:v 1");
    let cases = [
        (Vec::new(), "VIDEO_EMPTY"),
        (b"Lorem ipsum dolor sit amet.\n".repeat(40), "NOT_A_VIDEO"),
        (vec![0; 5000], "NOT_A_VIDEO"),
        (std::fs::read(sound).unwrap(), "NO_VIDEO_STREAM"),
        (std::fs::read(image).unwrap(), "IMAGE_NOT_VIDEO"),
    ];
    for (content, expected) in cases {
        assert_eq!(refusal(&server, content).await, (Code::InvalidArgument, expected.to_owned()));
    }
    let no_video = proto::ClassifyVideoRequest::default();
    let status = server.client().await.classify_video(no_video).await.unwrap_err();
    assert_eq!(reason(&status), (Code::InvalidArgument, "VIDEO_MISSING".to_owned()));
}

#[tokio::test]
async fn videos_over_a_limit_are_refused_with_the_limit() {
    let media = Media::new();
    let server = Server::start().await;
    let too_large = vec![0; (2 << 20) + 1];
    assert_eq!(refusal(&server, too_large).await, (Code::InvalidArgument, "VIDEO_TOO_LARGE".to_owned()));
    // Larger than the whole message may be: refused before it is read.
    let far_too_large = vec![0; 4 << 20];
    assert_eq!(refusal(&server, far_too_large).await, (Code::InvalidArgument, "VIDEO_TOO_LARGE".to_owned()));
    let long = media.make("long.mp4", "-f lavfi -i color=size=64x64:rate=25 -frames:v 401 -pix_fmt yuv420p");
    let long = std::fs::read(long).unwrap();
    assert_eq!(refusal(&server, long).await, (Code::InvalidArgument, "TOO_MANY_FRAMES".to_owned()));
}

#[tokio::test]
async fn a_message_over_the_limit_is_answered_under_its_key_and_its_stream_goes_on() {
    let media = Media::new();
    let server = Server::start().await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let too_large = vec![0; 5 << 20];
    let all = [("a", video.clone()), ("large", too_large.clone()), ("b", video.clone()), ("larger", too_large.clone())];
    let messages = all.clone().map(|(key, content)| keyed(key, content));
    let mut answers = server.client().await.classify_videos(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut reasons = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let reason = match answer.result.unwrap() {
            Answer::Classification(_) => "OK".to_owned(),
            Answer::Error(error) => error.reason,
        };
        reasons.insert(answer.key, reason);
    }
    let expected = [("a", "OK"), ("b", "OK"), ("large", "VIDEO_TOO_LARGE"), ("larger", "VIDEO_TOO_LARGE")];
    assert_eq!(reasons, expected.map(|(key, reason)| (key.to_owned(), reason.to_owned())).into());

    let messages = all.map(|(id, content)| inference::videos(id, &[&content]));
    let mut client = inference::Client::new(server.channel().await).max_encoding_message_size(usize::MAX);
    let mut answers = client.model_stream_infer(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut refused = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        refused.insert(answer.infer_response.unwrap().id, answer.error_message.contains("the limit is"));
    }
    let expected = [("a", false), ("b", false), ("large", true), ("larger", true)];
    assert_eq!(refused, expected.map(|(key, refused)| (key.to_owned(), refused)).into());
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_key_that_is_not_text_is_named_and_its_stream_goes_on() {
    let media = Media::new();
    let server = Server::start().await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let framed = |key: &[u8]| {
        let mut message = keyed("?".repeat(key.len()), video.clone()).encode_to_vec();
        message[2..2 + key.len()].copy_from_slice(key);
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    };
    let (sender, frames) = mpsc::channel(3);
    for key in [&b"caf\xe9.mp4"[..], b"coffee.mp4"] {
        sender.send(framed(key).into()).await.unwrap();
    }
    drop(sender);
    let answers = server.raw_answers::<ClassifyVideosResponse>("ClassifyVideos", frames).await;
    let mut by_key: BTreeMap<String, Answer> =
        answers.into_iter().map(|answer| (answer.key, answer.result.unwrap())).collect();
    let Some(Answer::Error(error)) = by_key.remove("caf?.mp4") else { panic!("{by_key:?}") };
    assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, "KEY_NOT_TEXT"));
    assert!(error.message.contains("caf\\xe9.mp4"), "{}", error.message);
    assert!(matches!(by_key.remove("coffee.mp4"), Some(Answer::Classification(_))));
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn truncated_video_is_answered_in_part() {
    let media = Media::new();
    let server = Server::start().await;
    let args = "-f lavfi -i testsrc2=size=320x240:rate=25 -t 4 -pix_fmt yuv420p -movflags +faststart";
    let whole = std::fs::read(media.make("whole.mp4", args)).unwrap();
    let half = whole[..whole.len() / 2].to_vec();
    let answer = server.client().await.classify_video(request(half)).await.unwrap().into_inner();
    let answer = answer.classification.unwrap();
    assert!(answer.partial && !answer.partial_detail.is_empty(), "{answer:?}");
    let frames = answer.video.unwrap().frames;
    assert!((10..100).contains(&frames), "{frames} of 100 frames");
}

#[tokio::test]
async fn options_out_of_range_are_refused() {
    let media = Media::new();
    let server = Server::start().await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let refused = async |options| {
        let request = proto::ClassifyVideoRequest { options: Some(options), ..request(video.clone()) };
        reason(&server.client().await.classify_video(request).await.unwrap_err()).1
    };
    for score_threshold in [-0.1, 1.1, f32::NAN] {
        let options = proto::ClassificationOptions { score_threshold, ..Default::default() };
        assert_eq!(refused(options).await, "INVALID_SCORE_THRESHOLD");
    }
    let options = proto::ClassificationOptions { segments: 77, ..Default::default() };
    assert_eq!(refused(options).await, "UNKNOWN_SEGMENT_MODE");
}

#[tokio::test]
async fn a_client_that_gave_up_frees_its_place() {
    let media = Media::new();
    let options = ServeOptions { max_requests: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(400))], limits(), options).await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let mut client = server.client().await;
    let mut impatient = Request::new(request(video.clone()));
    impatient.set_timeout(Duration::from_millis(100));
    assert!(client.classify_video(impatient).await.is_err());
    // Within 100 ms the place is free, although the model still works on the clip.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = client.classify_video(request(video)).await;
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn one_request_too_many_is_told_when_to_come_back() {
    let media = Media::new();
    let options = ServeOptions { max_requests: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(500))], limits(), options).await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let video = std::fs::read(video).unwrap();
    let (mut first, mut second) = (server.client().await, server.client().await);
    let running = tokio::spawn({
        let request = request(video.clone());
        async move { first.classify_video(request).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = second.classify_video(request(video)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "TOO_MANY_REQUESTS".to_owned()));
    assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    assert!(running.await.unwrap().is_ok());
}
