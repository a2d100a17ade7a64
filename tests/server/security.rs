//! Who may call, and whether others can listen in.

use std::time::Duration;

use bytes::Bytes;
use kinetoscope::client::{Client, Connection};
use kinetoscope::engine::Engine;
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::proto;
use kinetoscope::server::{Credentials, ServeOptions, Tls, TlsFiles, TlsPem, Tokens};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::{Serving, run, text};
use crate::media::Media;
use crate::support::{Server, engine_config, limits, reason, request};

async fn server(options: ServeOptions) -> Server {
    let engine = Engine::start(builtin::model().unwrap(), engine_config(), &Metrics::default()).unwrap();
    Server::with_models(vec![engine], limits(), options).await
}

async fn classify(connection: &Connection) -> Result<proto::VideoClassification, tonic::Status> {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -frames:v 3 -pix_fmt yuv420p";
    let video = Bytes::from(std::fs::read(media.make("video.mp4", args)).unwrap());
    let mut client = Client::connect(connection, Duration::from_secs(5)).await.unwrap();
    client.classify_video(video, proto::ClassificationOptions::default(), None).await
}

#[tokio::test]
async fn only_callers_with_a_token_are_served_but_health_is_open() {
    let media = Media::new();
    // `printf secret | sha256sum`.
    let line = b"us 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    let tokens = Tokens::read(&media.write("tokens", line)).unwrap();
    let server = server(ServeOptions { tokens: Some(tokens), ..ServeOptions::default() }).await;
    let with = |token: Option<&str>| Connection {
        server: server.address.to_string(),
        token: token.map(str::to_owned),
        ..Connection::default()
    };
    assert!(classify(&with(Some("secret"))).await.is_ok());
    let missing = classify(&with(None)).await.unwrap_err();
    assert_eq!(reason(&missing), (Code::Unauthenticated, "TOKEN_MISSING".to_owned()));
    let wrong = classify(&with(Some("guess"))).await.unwrap_err();
    assert_eq!(reason(&wrong), (Code::Unauthenticated, "TOKEN_UNKNOWN".to_owned()));
    let health = HealthClient::new(server.channel().await).check(HealthCheckRequest::default()).await;
    assert!(health.is_ok(), "probes have no token");
    server.assert_nothing_left_behind().await;
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into()
    }

    /// Certificate and key in PEM.
    fn issue(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem().into(), key.serialize_pem().into())
    }
}

#[tokio::test]
async fn tls_needs_the_right_root() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = Tls::new(&TlsPem { certificate, key, client_ca: None }).unwrap();
    let server = server(ServeOptions { tls: Some(tls), ..ServeOptions::default() }).await;
    let address = format!("https://localhost:{}", server.address.port());
    let trusting = |ca: &Authority| Connection { server: address.clone(), ca: Some(ca.pem()), ..Connection::default() };
    assert!(classify(&trusting(&authority)).await.is_ok());
    let other = Client::connect(&trusting(&Authority::new()), Duration::from_secs(5)).await;
    assert!(other.is_err(), "a certificate of another authority");
    let plain = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await;
    let plain = match plain {
        Ok(channel) => crate::support::Client::new(channel).classify_video(request(Vec::new())).await.is_err(),
        Err(_) => true,
    };
    assert!(plain, "a plain connection");
}

#[tokio::test]
async fn mtls_needs_a_certificate_of_the_client() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = Tls::new(&TlsPem { certificate, key, client_ca: Some(authority.pem()) }).unwrap();
    let server = server(ServeOptions { tls: Some(tls), ..ServeOptions::default() }).await;
    let connect = async |identity: Option<(Vec<u8>, Vec<u8>)>| {
        let server = format!("https://localhost:{}", server.address.port());
        let connection = Connection { server, ca: Some(authority.pem()), identity, token: None };
        let mut client = Client::connect(&connection, Duration::from_secs(5)).await?;
        client.is_serving().await.map_err(Box::<dyn std::error::Error>::from)
    };
    assert!(connect(Some(authority.issue("client"))).await.unwrap());
    assert!(connect(None).await.is_err());
    assert!(connect(Some(Authority::new().issue("client"))).await.is_err());
}

#[test]
fn files_that_are_no_identity_are_refused_at_the_start() {
    let (certificate, _) = Authority::new().issue("localhost");
    assert!(Tls::new(&TlsPem { key: certificate.clone(), certificate: certificate.clone(), client_ca: None }).is_err());
    let (_, other_key) = Authority::new().issue("localhost");
    let refused = Tls::new(&TlsPem { certificate, key: other_key, client_ca: None }).unwrap_err().to_string();
    assert!(refused.contains("don't make an identity"), "{refused}");
}

#[tokio::test]
async fn a_token_that_is_taken_away_ends_its_calls_and_gets_no_others() {
    let media = Media::new();
    // `printf secret | sha256sum`, `printf other | sha256sum`.
    let kept = "us 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    let revoked = "them d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa\n";
    let path = media.write("tokens", format!("{kept}{revoked}").as_bytes());
    let tokens = Tokens::read(&path).unwrap();
    let server = server(ServeOptions { tokens: Some(tokens.clone()), ..ServeOptions::default() }).await;
    let mut client = server.client().await;
    let bearing = |token: &'static str| {
        move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
            request
        }
    };
    // Two calls that wait for their videos, on one connection.
    let mut open = async |token: &'static str| {
        let (videos, receiver) = tokio::sync::mpsc::channel::<proto::ClassifyVideosRequest>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let request = bearing(token)(tonic::Request::new(())).map(|()| stream);
        (videos, client.classify_videos(request).await.unwrap().into_inner())
    };
    let (videos, mut of_kept) = open("bearer secret").await;
    let (_held, mut of_revoked) = open("Bearer other").await;
    std::fs::write(&path, kept).unwrap();
    tokens.replace(&path).unwrap();
    let ended = of_revoked.message().await.unwrap_err();
    assert_eq!(reason(&ended), (Code::Unauthenticated, "TOKEN_UNKNOWN".to_owned()));
    drop(videos);
    assert!(of_kept.message().await.unwrap().is_none(), "the other call goes on to its end");
    let with = |token: &str| Connection {
        server: server.address.to_string(),
        token: Some(token.to_owned()),
        ..Connection::default()
    };
    assert_eq!(classify(&with("other")).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(classify(&with("secret")).await.is_ok());

    std::fs::write(&path, "nonsense").unwrap();
    assert!(tokens.replace(&path).is_err());
    assert!(classify(&with("secret")).await.is_ok(), "a broken file changes nothing");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn certificates_and_tokens_are_read_again_when_their_files_change() {
    let media = Media::new();
    let (old, new) = (Authority::new(), Authority::new());
    let write = |authority: &Authority| {
        let (certificate, key) = authority.issue("localhost");
        (media.write("certificate.pem", &certificate), media.write("key.pem", &key))
    };
    let (certificate, key) = write(&old);
    let tokens = media.write("tokens", b"us 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n");
    let files = TlsFiles { certificate: certificate.clone(), key, client_ca: None };
    let mut credentials = Credentials::read(Some(files), Some(tokens.clone())).unwrap();
    let options = ServeOptions { tls: credentials.tls(), tokens: credentials.tokens(), ..ServeOptions::default() };
    let server = server(options).await;
    let connection = |ca: &Authority, token: &str| Connection {
        server: format!("https://localhost:{}", server.address.port()),
        ca: Some(ca.pem()),
        token: Some(token.to_owned()),
        ..Connection::default()
    };
    let connects =
        async |ca: &Authority| Client::connect(&connection(ca, "secret"), Duration::from_secs(5)).await.is_ok();
    assert!(classify(&connection(&old, "secret")).await.is_ok());

    // One file after the other: in between they don't fit, and what was read before goes on.
    let (next_certificate, next_key) = new.issue("localhost");
    std::fs::write(&certificate, next_certificate).unwrap();
    credentials.refresh(false);
    assert!(connects(&old).await && !connects(&new).await);
    media.write("key.pem", &next_key);
    std::fs::write(&tokens, "us d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa\n").unwrap();
    credentials.refresh(false);
    assert!(connects(&new).await && !connects(&old).await);
    assert!(classify(&connection(&new, "other")).await.is_ok());
    assert_eq!(classify(&connection(&new, "secret")).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_now_is_told_with_its_date() {
    let media = Media::new();
    let write = |from: i32, until: i32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 2);
        params.not_after = rcgen::date_time_ymd(until, 3, 4);
        let certificate = params.self_signed(&key).unwrap();
        (media.write("c.pem", certificate.pem().as_bytes()), media.write("k.pem", key.serialize_pem().as_bytes()))
    };
    for (from, until, expected) in [
        (2001, 2002, Some("the certificate expired at 2002-03-04T00:00:00Z")),
        (2901, 2902, Some("the certificate is not valid before 2901-01-02T00:00:00Z")),
        (2001, 2902, None),
    ] {
        let (certificate, key) = write(from, until);
        let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
        let checked = run(&["serve", "--check", "--tls-certificate", files[0], "--tls-key", files[1]]);
        let log = text(&checked.stderr);
        assert!(checked.status.success(), "{log}");
        match expected {
            Some(expected) => assert!(log.contains(expected), "{log}"),
            None => assert!(!log.contains("valid now"), "{log}"),
        }
    }
}

#[tokio::test]
async fn a_handshake_that_fails_is_a_line_with_its_reason() {
    let media = Media::new();
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let (certificate, key) = (media.write("c.pem", &certificate), media.write("k.pem", &key));
    let args = ["--tls-certificate", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let server = Serving::with(&args);
    let port = server.address.rsplit_once(':').unwrap().1;
    let connection = Connection {
        server: format!("https://localhost:{port}"),
        ca: Some(Authority::new().pem()),
        ..Connection::default()
    };
    assert!(Client::connect(&connection, Duration::from_secs(5)).await.is_err());
    let line = server.log_line("a TLS handshake failed");
    assert!(line["error"].as_str().unwrap().contains("alert"), "{line}");
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_a_line_with_its_reason() {
    let media = Media::new();
    let (certificate, key) = Authority::new().issue("localhost");
    let (certificate, key) = (media.write("c.pem", &certificate), media.write("k.pem", &key));
    let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
    let server = Serving::with(&["--tls-certificate", certificate, "--tls-key", key, "--handshake-timeout", "200ms"]);
    let _silent = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let line = server.log_line("a TLS handshake failed");
    assert_eq!(line["error"], "the client took too long to begin");
}

#[tokio::test]
async fn a_running_server_follows_the_file_of_tokens_and_hangups() {
    let media = Media::new();
    let line = "us 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    let tokens = media.write("tokens", line.as_bytes());
    let server = Serving::with(&["--tokens", tokens.to_str().unwrap()]);
    let connection =
        Connection { server: server.address.clone(), token: Some("secret".to_owned()), ..Connection::default() };
    assert!(classify(&connection).await.is_ok());
    std::fs::write(&tokens, line.replace("us 2bb", "us 000")).unwrap();
    server.log_line("tokens were read again");
    assert_eq!(classify(&connection).await.unwrap_err().code(), Code::Unauthenticated);
    server.signal("-HUP");
    server.log_line("tokens were read again");
}
