//! Health, reflection, request ids, and stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use kinetoscope::proto;
use kinetoscope::server::ServeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::media::Media;
use crate::support::{Server, limits, reason, request, slow_engine};

const SERVICE: &str = "kinetoscope.v1.VideoClassificationService";

/// Three frames.
fn video(media: &Media) -> Vec<u8> {
    std::fs::read(media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p")).unwrap()
}

#[tokio::test]
async fn health_is_serving_for_the_server_and_its_service_only() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, ServingStatus::Serving as i32, "{service:?}");
    }
    let unknown = health.check(HealthCheckRequest { service: "nobody".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_service() {
    let server = Server::start().await;
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let mut responses = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = response else { panic!("{response:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in [SERVICE, "grpc.health.v1.Health"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
}

#[tokio::test]
async fn request_id_comes_back_with_answers_and_errors() {
    let media = Media::new();
    let server = Server::start().await;
    let video = media.make("video.mp4", "-f lavfi -i testsrc2=size=64x64 -frames:v 3 -pix_fmt yuv420p");
    let mut client = server.client().await;

    let mut named = Request::new(request(std::fs::read(video).unwrap()));
    named.metadata_mut().insert("x-request-id", "job-17".parse().unwrap());
    let answer = client.classify_video(named).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "job-17");

    let error = client.classify_video(request(Vec::new())).await.unwrap_err();
    assert!(!error.metadata().get("x-request-id").unwrap().is_empty(), "the server makes one up");
}

#[tokio::test]
async fn running_requests_finish_when_the_server_stops() {
    let media = Media::new();
    let engine = slow_engine(Duration::from_millis(400));
    let server = Server::with_models(vec![engine], limits(), ServeOptions::default()).await;
    let video = video(&media);
    let mut client = server.client().await;
    let running = tokio::spawn(async move { client.classify_video(request(video)).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let stopped = server.stop();
    assert!(running.await.unwrap().is_ok(), "accepted before the signal, answered after it");
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_of_videos_ends_with_the_videos_it_has_when_the_server_stops() {
    let media = Media::new();
    let server =
        Server::with_models(vec![slow_engine(Duration::from_millis(300))], limits(), ServeOptions::default()).await;
    let video = request(video(&media)).video;
    let (messages, stream) = tokio::sync::mpsc::channel(1);
    messages.send(proto::ClassifyVideosRequest { key: "a".to_owned(), video, options: None }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut answers = server.client().await.classify_videos(stream).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let stopped = server.stop();
    assert_eq!(answers.message().await.unwrap().unwrap().key, "a");
    let end = answers.message().await.unwrap_err();
    assert_eq!(reason(&end), (Code::Unavailable, "STOPPING".to_owned()));
    stopped.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "stopped after {:?}", begun.elapsed());
}

#[tokio::test]
async fn an_old_connection_gives_way_to_a_new_one_and_loses_no_call() {
    let options = ServeOptions { max_connection_age: Some(Duration::from_millis(200)), ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let connections = Arc::new(AtomicUsize::new(0));
    let (address, counter) = (server.address, Arc::clone(&connections));
    let connector = tower::service_fn(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut health = HealthClient::new(endpoint.connect_with_connector(connector).await.unwrap());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        health.check(HealthCheckRequest::default()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let connections = connections.load(Ordering::Relaxed);
    assert!((3..=6).contains(&connections), "{connections} connections in a second of which each may last a fifth");
}

#[tokio::test]
async fn what_holds_no_request_holds_up_no_stop_and_who_watches_is_told() {
    let server = Server::start().await;
    // A watch, an open reflection stream, a connection that speaks HTTP/2 and never answers, and one that says nothing.
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (_asking, questions) = tokio::sync::mpsc::channel::<ServerReflectionRequest>(1);
    let questions = tokio_stream::wrappers::ReceiverStream::new(questions);
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let mut reflected = reflection.server_reflection_info(questions).await.unwrap().into_inner();
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // Until it has the server's settings.
    deaf.read_exact(&mut [0; 9]).await.unwrap();
    let _silent = TcpStream::connect(server.address).await.unwrap();

    let begun = Instant::now();
    let stopped = server.stop();
    let mut last = None;
    while let Some(answer) = watch.message().await.unwrap() {
        last = Some(answer.status());
    }
    assert_eq!(last, Some(ServingStatus::NotServing));
    assert_eq!(reason(&reflected.message().await.unwrap_err()), (Code::Unavailable, "STOPPING".to_owned()));
    stopped.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "stopped after {:?} of 30 s of grace", begun.elapsed());
}

/// Waits until the server closes a connection; whatever it sends before is passed over.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    read.is_ok()
}

#[tokio::test]
async fn connections_that_never_begin_are_closed_and_others_stay() {
    let options = ServeOptions { handshake_timeout: Duration::from_millis(200), ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    for beginning in [&b""[..], b"PRI * HTTP/2.0"] {
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        silent.write_all(beginning).await.unwrap();
        assert!(is_closed(&mut silent).await, "{beginning:?}");
    }
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn of_too_many_connections_the_idlest_goes_and_none_with_a_request() {
    let media = Media::new();
    let options = ServeOptions { max_connections: 2, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_secs(1))], limits(), options).await;
    let video = video(&media);
    let mut client = server.client().await;
    let running = tokio::spawn(async move { client.classify_video(request(video)).await });
    while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    assert!(is_closed(&mut silent).await);
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test]
async fn watches_leave_most_calls_to_requests() {
    let media = Media::new();
    let options = ServeOptions { max_calls: 8, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await;
    let mut watches = Vec::new();
    let refused = loop {
        match HealthClient::new(server.channel().await).watch(HealthCheckRequest::default()).await {
            Ok(watch) => watches.push(watch),
            Err(refused) => break refused,
        }
        assert!(watches.len() <= 2, "a quarter of all");
    };
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_CALLS".to_owned()));
    assert!(server.client().await.classify_video(request(video(&media))).await.is_ok());
    drop(watches);
}

#[tokio::test]
async fn the_grace_period_bounds_the_stop() {
    let media = Media::new();
    let engine = slow_engine(Duration::from_secs(3));
    let options = ServeOptions { grace: Duration::from_millis(100), ..ServeOptions::default() };
    let server = Server::with_models(vec![engine], limits(), options).await;
    let video = video(&media);
    let mut client = server.client().await;
    let running = tokio::spawn(async move { client.classify_video(request(video)).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let started = Instant::now();
    let _ = server.stop().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "stopped after {:?}", started.elapsed());
    running.abort();
}

#[tokio::test]
async fn http_pages_tell_metrics_and_health() {
    let server = Server::start().await;
    assert_eq!(server.page("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(server.page("/readyz").await, (200, "ready\n".to_owned()));
    let (status, text) = server.page("/metrics").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("kinetoscope_workers{model=\"camera-motion\",state=\"idle\"} 1"), "{text}");
    for name in ["process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in {text}");
    }
    assert!(server.metric("process_start_time_seconds").await > 1e9);
    assert_eq!(server.page("/elsewhere").await.0, 404);
}
