//! The health service as its protocol has it, and metrics as those who scrape them want them.

use std::time::Duration;

use kinetoscope::server::ServeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::text;
use crate::support::{Server, limits, reason, slow_engine};

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn watchers_hear_of_changes_only_and_are_let_go_when_the_server_stops() {
    let engine = slow_engine(Duration::ZERO);
    let server = Server::with_models(vec![engine], limits(), ServeOptions::default()).await;
    let mut client = HealthClient::new(server.channel().await);
    let unknown = client.check(about("some.Service")).await.unwrap_err();
    assert_eq!(reason(&unknown), (Code::NotFound, "SERVICE_UNKNOWN".to_owned()));

    let mut watchers = Vec::new();
    for (service, expected) in [
        ("", ServingStatus::Serving),
        ("kinetoscope.v1.VideoClassificationService", ServingStatus::Serving),
        ("some.Service", ServingStatus::ServiceUnknown),
    ] {
        let mut answers = client.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().status(), expected, "{service}");
        watchers.push((service, answers));
    }
    // Two of the periods in which the server looks at its workers.
    let (_, first) = &mut watchers[0];
    assert!(timeout(Duration::from_millis(1100), first.message()).await.is_err(), "nothing changed");

    let stopped = server.stop();
    for (service, mut answers) in watchers {
        if service != "some.Service" {
            assert_eq!(answers.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        }
        assert_eq!(answers.message().await.unwrap(), None, "{service}");
    }
    timeout(Duration::from_secs(10), stopped).await.expect("nobody is waited for").unwrap().unwrap();
}

#[tokio::test]
async fn metrics_are_text_unless_open_metrics_is_asked_for() {
    let engine = slow_engine(Duration::ZERO);
    let server = Server::with_models(vec![engine], limits(), ServeOptions::default()).await;
    for (accept, content_type, last) in [
        ("", "text/plain; version=0.0.4", None),
        ("Accept: text/plain;version=0.0.4\r\n", "text/plain; version=0.0.4", None),
        ("Accept: application/openmetrics-text;version=1.0.0\r\n", "application/openmetrics-text", Some("# EOF")),
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.http_address).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: server\r\n{accept}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        let (head, body) = text(&response).split_once("\r\n\r\n").unwrap();
        assert!(head.contains(content_type), "{head}");
        assert_eq!(body.lines().last().filter(|line| line.starts_with('#')), last, "{accept}");
    }
}

#[test]
fn a_directory_for_uploads_that_cannot_be_written_is_told_at_the_start() {
    let program = env!("CARGO_BIN_EXE_kinetoscope");
    let served = std::process::Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("TMPDIR", "/nowhere/to/be/found")
        .output()
        .unwrap();
    let log = text(&served.stderr);
    assert!(!served.status.success() && log.contains("can't write to the spool /nowhere/to/be/found"), "{log}");
}
