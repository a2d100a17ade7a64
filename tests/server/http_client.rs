//! A client of the HTTP API.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::request::Builder;
use tonic::codegen::http::{HeaderMap, Request, Response};

use crate::support::Server;

type Incoming = axum::body::Body;

/// An answer that is there as a whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status and reason of an error.
    pub(crate) fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(!error["code"].as_str().unwrap().is_empty(), "{error}");
        assert!(!self.header("x-request-id").is_empty());
        (self.status, error["reason"].as_str().unwrap().to_owned())
    }

    /// The events of newline-delimited JSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: http_body::Body + Send + 'static + Unpin,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address)
}

pub(crate) fn post(server: &Server, path: &str) -> Builder {
    Request::post(url(server, path))
}

pub(crate) async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// Sends a request whose body is here.
pub(crate) async fn send(request: Builder, body: impl Into<Bytes>) -> Answer {
    let request = request.body(Full::new(body.into())).unwrap();
    whole(client().request(request).await.unwrap().map(Incoming::new)).await
}

pub(crate) async fn get(server: &Server, path: &str) -> Answer {
    send(Request::get(url(server, path)), Bytes::new()).await
}

/// Sends a request whose body comes bit by bit. Its response may begin before that ends.
pub(crate) async fn send_chunks(request: Builder, chunks: mpsc::Receiver<Bytes>) -> Response<Incoming> {
    let chunks = ReceiverStream::new(chunks).map(Ok::<_, std::convert::Infallible>);
    let request = request.body(Incoming::from_stream(chunks)).unwrap();
    client().request(request).await.unwrap().map(Incoming::new)
}

/// The next events of a response in newline-delimited JSON.
pub(crate) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, rest: Vec::new() }
    }

    /// The next line that is not empty.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if line.len() > 1 {
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                continue;
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

/// A form of text fields and then a file.
pub(crate) fn form(request: Builder, fields: &[(&str, &str)], file: &[u8]) -> (Builder, Vec<u8>) {
    const BOUNDARY: &str = "a-boundary-that-is-in-no-video";
    let mut body = Vec::new();
    for (name, text) in fields {
        let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp4\"\r\n\
         Content-Type: video/mp4\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    (request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}")), body)
}
