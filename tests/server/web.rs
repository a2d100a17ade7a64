//! A web server, and a stand-in for the stores of clouds, to be asked for videos.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;

/// A running server. The first part of a path says how it behaves, the second which file is asked for.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    site: Arc<Site>,
}

#[derive(Default)]
struct Site {
    files: HashMap<String, Bytes>,
    asked: Mutex<Vec<Asked>>,
    /// One is held by each body that falls silent, as long as somebody waits for it.
    stalled: Arc<()>,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) range: Option<Range<usize>>,
    pub(crate) authorization: Option<String>,
}

impl Web {
    pub(crate) async fn start(files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (site, router) = site(files);
        tokio::spawn(async move { serve(listener, router).await });
        Self { address, site }
    }

    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// What was asked for since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.site.asked.lock().unwrap())
    }

    /// Waits, but not long, until nobody waits for a silent server.
    pub(crate) async fn assert_nobody_waits(&self) {
        for _ in 0..100 {
            if Arc::strong_count(&self.site.stalled) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a transfer goes on");
    }
}

fn site(files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> (Arc<Site>, Router) {
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.into())).collect();
    let site = Arc::new(Site { files, ..Site::default() });
    (Arc::clone(&site), Router::new().route("/{*path}", get(answer)).with_state(site))
}

/// The same over TLS, with a certificate for `localhost`. Gives its port.
pub(crate) async fn start_tls(
    files: impl IntoIterator<Item = (&'static str, Vec<u8>)>,
    certificate: &rcgen::CertifiedKey<rcgen::KeyPair>,
) -> u16 {
    struct Tls(TcpListener, tokio_rustls::TlsAcceptor);
    impl axum::serve::Listener for Tls {
        type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (Self::Io, SocketAddr) {
            loop {
                let (stream, from) = self.0.accept().await.unwrap();
                if let Ok(stream) = self.1.accept(stream).await {
                    return (stream, from);
                }
            }
        }

        fn local_addr(&self) -> std::io::Result<SocketAddr> {
            self.0.local_addr()
        }
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key.into())
        .unwrap();
    let (_, router) = site(files);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move { serve(Tls(listener, acceptor), router).await });
    port
}

async fn answer(State(site): State<Arc<Site>>, Path(path): Path<String>, request: Request) -> Response {
    let asked = Asked {
        range: range(request.headers()),
        query: request.uri().query().map(str::to_owned),
        authorization: request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned()),
        path: path.clone(),
    };
    site.asked.lock().unwrap().push(asked.clone());
    let (behaviour, name) = path.split_once('/').unwrap_or((&path, ""));
    let Some(file) = site.files.get(name).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let is_rest = asked.range.as_ref().is_some_and(|range| range.start > 0);
    match behaviour {
        "redirect" => (StatusCode::FOUND, [(header::LOCATION, format!("/clips/{name}"))]).into_response(),
        "denied" => StatusCode::FORBIDDEN.into_response(),
        "broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "broken-later" if is_rest => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "no-ranges" => whole(file),
        // In chunks, so that nobody knows how long it is before it is there.
        "no-length" => in_chunks(file),
        "part-of-unknown" if asked.range.is_some() => {
            let range = [(header::CONTENT_RANGE, "bytes 0-99/*")];
            (StatusCode::PARTIAL_CONTENT, range, file.slice(..file.len().min(100))).into_response()
        }
        "part-of-unknown" => in_chunks(file),
        "rejected" => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        "busy" => StatusCode::TOO_MANY_REQUESTS.into_response(),
        "endless" => {
            let length = [(header::CONTENT_LENGTH, (1u64 << 60).to_string())];
            (length, Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>())).into_response()
        }
        "silent" => {
            let _waits = Arc::clone(&site.stalled);
            std::future::pending().await
        }
        "silent-later" if is_rest => part(file.clone(), asked.range, "\"1\"", Some(Arc::clone(&site.stalled))),
        "silent-without-ranges" => {
            let length = [(header::CONTENT_LENGTH, file.len().to_string())];
            (length, stalling(file.slice(..file.len() / 2), Arc::clone(&site.stalled))).into_response()
        }
        "changing" if is_rest => part(file, asked.range, "\"2\"", None),
        _ => part(file, asked.range, "\"1\"", None),
    }
}

fn range(headers: &HeaderMap) -> Option<Range<usize>> {
    let (start, end) = headers.get(header::RANGE)?.to_str().unwrap().strip_prefix("bytes=")?.split_once('-')?;
    Some(start.parse().unwrap()..end.parse::<usize>().unwrap() + 1)
}

fn whole(file: Bytes) -> Response {
    ([(header::CONTENT_LENGTH, file.len().to_string())], file).into_response()
}

fn part(file: Bytes, range: Option<Range<usize>>, tag: &str, stalled: Option<Arc<()>>) -> Response {
    let about = [
        (header::ETAG, tag.to_owned()),
        (header::LAST_MODIFIED, "Wed, 25 Nov 2026 00:00:00 GMT".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    let Some(range) = range else { return (about, whole(file)).into_response() };
    if range.start >= file.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let range = range.start..range.end.min(file.len());
    let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, file.len());
    let length = (range.end - range.start).to_string();
    let bytes = file.slice(range);
    let body = match stalled {
        Some(stalled) => stalling(bytes.slice(..bytes.len() / 2), stalled),
        None => bytes.into(),
    };
    let headers = [(header::CONTENT_RANGE, content_range), (header::CONTENT_LENGTH, length)];
    (StatusCode::PARTIAL_CONTENT, about, headers, body).into_response()
}

fn in_chunks(file: Bytes) -> Response {
    let chunks: Vec<Result<Bytes, std::io::Error>> =
        file.chunks(64 << 10).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    Body::from_stream(tokio_stream::iter(chunks)).into_response()
}

/// Some bytes and then nothing.
fn stalling(bytes: Bytes, stalled: Arc<()>) -> Body {
    let first = tokio_stream::once(Ok::<_, std::io::Error>(bytes));
    let nothing = tokio_stream::pending().map(move |chunk| {
        let _held = &stalled;
        chunk
    });
    Body::from_stream(first.chain(nothing))
}
