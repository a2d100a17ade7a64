//! However a call over HTTP ends, the client learns the right status and the server keeps nothing of it: every way to send
//! a video, by every way to end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kinetoscope::server::ServeOptions;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::http_client::{Lines, form, post, send, send_chunks, whole};
use crate::media::Media;
use crate::support::{Server, broken_engine, idle_timeout, limits, slow_engine};

/// A way to send a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Body,
    Chunks,
    Form,
    Events,
    ServerSentEvents,
    Inference,
}

const WAYS: [Way; 6] = [Way::Body, Way::Chunks, Way::Form, Way::Events, Way::ServerSentEvents, Way::Inference];

/// Sends a video and gives the status of the answer, or the one that the error in a stream would have had.
async fn send_video(
    server: &Server,
    way: Way,
    video: Vec<u8>,
    query: &str,
) -> impl Future<Output = u16> + Send + 'static {
    let classify = post(server, &format!("/v1/videos:classify{query}"));
    let infer = post(server, &format!("/v2/models/camera-motion/infer{query}"));
    async move {
        let answer = match way {
            Way::Body => send(classify, video).await,
            Way::Chunks => {
                let (sender, chunks) = mpsc::channel(1);
                let response = AbortOnDropHandle::new(tokio::spawn(send_chunks(classify, chunks)));
                for chunk in video.chunks(5000) {
                    if sender.send(Bytes::copy_from_slice(chunk)).await.is_err() {
                        break;
                    }
                }
                drop(sender);
                whole(response.await.unwrap()).await
            }
            Way::Form => {
                let (request, body) = form(classify, &[], &video);
                send(request, body).await
            }
            Way::Events => send(classify.header("accept", "application/x-ndjson"), video).await,
            Way::ServerSentEvents => send(classify.header("accept", "text/event-stream"), video).await,
            Way::Inference => {
                let json = format!(
                    r#"{{"inputs": [{{"name": "VIDEO", "datatype": "BYTES", "shape": [1], "parameters": {{"binary_data_size": {}}}}}]}}"#,
                    video.len() + 4
                );
                let length = (video.len() as u32).to_le_bytes();
                let body = [json.as_bytes(), &length, &video].concat();
                send(infer.header("inference-header-content-length", json.len()), body).await
            }
        };
        // The last event of a stream that failed says why.
        match answer.text().lines().last().filter(|_| answer.status == 200) {
            Some(_) if answer.text().contains(r#"{"error":"#) && answer.text().contains("DEADLINE_EXCEEDED") => 504,
            Some(_) if answer.text().contains(r#"{"error":"#) => 500,
            _ => answer.status,
        }
    }
}

fn video(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -t 4 -pix_fmt yuv420p";
    std::fs::read(media.make("video.mp4", args)).unwrap()
}

async fn slow_server(per_clip: u64, options: ServeOptions) -> Server {
    Server::with_models(vec![slow_engine(Duration::from_millis(per_clip))], limits(), options).await
}

async fn until_it_is_decoded(server: &Server) {
    while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn ok() {
    let media = Media::new();
    let server = Server::start().await;
    for way in WAYS {
        assert_eq!(send_video(&server, way, video(&media), "").await.await, 200, "{way:?}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn the_client_cancels() {
    let media = Media::new();
    let server = slow_server(200, ServeOptions::default()).await;
    for way in WAYS {
        let sending = tokio::spawn(send_video(&server, way, video(&media), "").await);
        until_it_is_decoded(&server).await;
        sending.abort();
        let aborted = Instant::now();
        server.assert_nothing_left_behind().await;
        // A hundred milliseconds for the server, the rest for asking it.
        assert!(aborted.elapsed() < Duration::from_millis(400), "{way:?}: {:?}", aborted.elapsed());
    }
}

#[tokio::test]
async fn the_deadline_passes() {
    let media = Media::new();
    let server = slow_server(100, ServeOptions::default()).await;
    for way in WAYS {
        let status = send_video(&server, way, video(&media), "?timeout=0.25").await.await;
        assert_eq!(status, 504, "{way:?}");
        server.assert_nothing_left_behind().await;
    }
    let answer = post(&server, "/v1/videos:classify?timeout=0.5&partialAtDeadline=true");
    let answer = send(answer, video(&media)).await.json();
    assert_eq!(answer["classification"]["partialReason"], "PARTIAL_REASON_DEADLINE");
}

#[tokio::test]
async fn the_server_fails() {
    let media = Media::new();
    let server = Server::with_models(vec![broken_engine()], limits(), ServeOptions::default()).await;
    for way in WAYS {
        assert_eq!(send_video(&server, way, video(&media), "").await.await, 500, "{way:?}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn the_server_stops() {
    let media = Media::new();
    for way in WAYS {
        let server = slow_server(60, ServeOptions::default()).await;
        let sending = tokio::spawn(send_video(&server, way, video(&media), "").await);
        until_it_is_decoded(&server).await;
        let stopped = server.stop();
        assert_eq!(sending.await.unwrap(), 200, "{way:?}: what was accepted is answered");
        stopped.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_server_is_full() {
    let media = Media::new();
    let server = slow_server(100, ServeOptions { max_requests: 1, ..ServeOptions::default() }).await;
    for way in WAYS {
        let first = tokio::spawn(send_video(&server, Way::Body, video(&media), "").await);
        until_it_is_decoded(&server).await;
        assert_eq!(send_video(&server, way, video(&media), "").await.await, 429, "{way:?}");
        assert_eq!(first.await.unwrap(), 200);
        server.assert_nothing_left_behind().await;
    }
}

#[tokio::test]
async fn a_client_that_falls_silent_is_ended() {
    let media = Media::new();
    let options = ServeOptions { pace: idle_timeout(Duration::from_millis(200)), ..ServeOptions::default() };
    let server = slow_server(0, options).await;
    let video = video(&media);
    for way in [Way::Body, Way::Events, Way::Inference] {
        let path = if way == Way::Inference { "/v2/models/camera-motion/infer" } else { "/v1/videos:classify" };
        let request = match way {
            Way::Events => post(&server, path).header("accept", "application/x-ndjson"),
            _ => post(&server, path),
        };
        let (sender, chunks) = mpsc::channel(1);
        sender.send(Bytes::copy_from_slice(&video[..video.len() / 2])).await.unwrap();
        let response = send_chunks(request, chunks).await;
        assert_eq!(response.status(), 408, "{way:?}");
        drop(sender);
        server.assert_nothing_left_behind().await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing() {
    let media = Media::new();
    let server = slow_server(50, ServeOptions::default()).await;
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -t 4 -g 5 -pix_fmt yuv420p -f mpegts";
    let video = std::fs::read(media.make("video.ts", args)).unwrap();
    let (sender, chunks) = mpsc::channel(1);
    sender.send(Bytes::copy_from_slice(&video[..video.len() / 2])).await.unwrap();
    let request = post(&server, "/v1/videos:classify").header("accept", "application/x-ndjson");
    let mut events = Lines::new(send_chunks(request, chunks).await.into_body());
    assert!(events.next().await.is_some());
    drop((events, sender));
    server.assert_nothing_left_behind().await;
}
