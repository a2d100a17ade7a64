//! Who may call, and whether others can listen in.

use std::time::Duration;

use bytes::Bytes;
use kinetoscope::engine::Engine;
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::rpc::client::{Client, Connection};
use kinetoscope::rpc::{ServeOptions, Tls, Tokens, proto};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

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
    let tls = Tls { certificate, key, client_ca: None };
    tls.validate().unwrap();
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
    let tls = Tls { certificate, key, client_ca: Some(authority.pem()) };
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
    let tls = Tls { key: certificate.clone(), certificate, client_ca: None };
    assert!(tls.validate().is_err());
}
