//! Calls a running server.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::oip;
use crate::oip::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::proto::classify_video_stream_request::Payload;
use crate::proto::classify_video_stream_response::Event;
use crate::proto::video_classification_service_client::VideoClassificationServiceClient;
use crate::proto::{self, video};

/// Responses with every label of every clip of a long video exceed gRPC's usual 4 MiB.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// Pause before the second try if the server names none; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// A connection to a server. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: VideoClassificationServiceClient<Channel>,
    inference: GrpcInferenceServiceClient<Channel>,
    health: HealthClient<Channel>,
    authorization: Option<AsciiMetadataValue>,
}

/// How to reach a server.
#[derive(Clone, Default)]
pub struct Connection {
    /// `http://HOST:PORT` or `https://HOST:PORT`; a bare `HOST:PORT` is completed to the first. Or `unix:PATH`, a socket in
    /// the file system.
    pub server: String,
    /// Sent with every call.
    pub token: Option<String>,
    /// Roots of the server's certificate in PEM; the system's if `None`.
    pub ca: Option<Vec<u8>>,
    /// Certificate and private key in PEM, for a server that wants clients to have them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address, the network or the server's certificate.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// A token that can't be sent.
    #[error("the token has characters other than printable ASCII")]
    Token,
}

impl Client {
    /// Connects.
    pub async fn connect(connection: &Connection, timeout: Duration) -> Result<Self, ConnectError> {
        let server = &connection.server;
        let is_whole = server.contains("://") || server.starts_with("unix:");
        let url = if is_whole { server.clone() } else { format!("http://{server}") };
        let mut tls = ClientTlsConfig::new().with_native_roots();
        if let Some(ca) = &connection.ca {
            tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        }
        if let Some((certificate, key)) = &connection.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let token = |token: &String| format!("Bearer {token}").parse().map_err(|_| ConnectError::Token);
        let authorization = connection.token.as_ref().map(token).transpose()?;
        let mut endpoint = Endpoint::from_shared(url)?.connect_timeout(timeout);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(tls)?;
        }
        let channel = endpoint.connect().await?;
        let inner = VideoClassificationServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_RESPONSE_BYTES)
            .max_encoding_message_size(usize::MAX);
        let inference = GrpcInferenceServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_RESPONSE_BYTES)
            .max_encoding_message_size(usize::MAX);
        Ok(Self { inner, inference, health: HealthClient::new(channel), authorization })
    }

    /// Whether the server takes requests.
    pub async fn is_serving(&mut self) -> Result<bool, Status> {
        let request = self.request(HealthCheckRequest::default(), &Deadline::new(None));
        Ok(self.health.check(request).await?.into_inner().status() == ServingStatus::Serving)
    }

    /// Describes a model; the server's default one without a name.
    pub async fn model(&mut self, name: &str) -> Result<proto::Model, Status> {
        let model = proto::ModelSelector { name: name.to_owned(), version: String::new() };
        let request = self.request(proto::GetModelRequest { model: Some(model) }, &Deadline::new(None));
        let response = self.inner.get_model(request).await?.into_inner();
        response.model.ok_or_else(|| Status::data_loss("the server's response holds no model"))
    }

    /// Scores of clips of 8-bit RGB in the shape `(n, t, h, w, 3)`, as little-endian f32 `(n, classes)`.
    pub async fn infer_clips(
        &mut self,
        model: &str,
        shape: [usize; 5],
        rgb: Bytes,
        timeout: Option<Duration>,
    ) -> Result<Bytes, Status> {
        let input = oip::model_infer_request::InferInputTensor {
            name: "CLIPS".to_owned(),
            datatype: "UINT8".to_owned(),
            shape: shape.map(|dim| dim as i64).into(),
            ..Default::default()
        };
        let request = oip::ModelInferRequest {
            model_name: model.to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![rgb],
            ..Default::default()
        };
        let deadline = Deadline::new(timeout);
        let request = self.request(request, &deadline);
        let response = self.inference.model_infer(request).await;
        let mut raw = response.map_err(|status| deadline.explain(status))?.into_inner().raw_output_contents;
        raw.pop().ok_or_else(|| Status::data_loss("the server's response holds no output"))
    }

    /// A call with its time limit and the token.
    fn request<T>(&self, message: T, deadline: &Deadline) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = deadline.timeout {
            request.set_timeout(timeout);
        }
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// Classifies one encoded video in one message, within `timeout` if there is one.
    pub async fn classify_video(
        &mut self,
        content: Bytes,
        options: proto::ClassificationOptions,
        timeout: Option<Duration>,
    ) -> Result<proto::VideoClassification, Status> {
        self.classify_source(video::Source::Content(content), options, timeout).await
    }

    /// Classifies the video that the server finds at `uri`, within `timeout` if there is one.
    pub async fn classify_uri(
        &mut self,
        uri: String,
        options: proto::ClassificationOptions,
        timeout: Option<Duration>,
    ) -> Result<proto::VideoClassification, Status> {
        self.classify_source(video::Source::Uri(uri), options, timeout).await
    }

    async fn classify_source(
        &mut self,
        source: video::Source,
        options: proto::ClassificationOptions,
        timeout: Option<Duration>,
    ) -> Result<proto::VideoClassification, Status> {
        let video = proto::Video { source: Some(source) };
        let request = proto::ClassifyVideoRequest { video: Some(video), options: Some(options) };
        let deadline = Deadline::new(timeout);
        let request = self.request(request, &deadline);
        let response = self.inner.classify_video(request).await;
        let response = response.map_err(|status| deadline.explain(status))?.into_inner();
        response.classification.ok_or_else(|| Status::data_loss("the server's response holds no classification"))
    }

    /// Classifies one encoded video while `chunks` of it are sent, within `timeout` if there is one. `on_event` gets
    /// what the server tells on the way.
    pub async fn classify_upload(
        &mut self,
        chunks: impl Stream<Item = Bytes> + Send + 'static,
        options: proto::ClassificationOptions,
        timeout: Option<Duration>,
        mut on_event: impl FnMut(&Event),
    ) -> Result<proto::VideoClassification, Status> {
        let message = |payload| proto::ClassifyVideoStreamRequest { payload: Some(payload) };
        let first = tokio_stream::once(message(Payload::Options(options)));
        let messages = first.chain(chunks.map(move |chunk| message(Payload::Chunk(chunk))));
        let deadline = Deadline::new(timeout);
        let request = self.request(messages, &deadline);
        let outcome = async {
            let mut events = self.inner.classify_video_stream(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                match event.event {
                    Some(Event::Classification(classification)) => return Ok(classification),
                    Some(event) => on_event(&event),
                    None => {}
                }
            }
            Err(Status::data_loss("the server's stream holds no classification"))
        };
        outcome.await.map_err(|status| deadline.explain(status))
    }
}

/// A call's own time limit.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    timeout: Option<Duration>,
    sent: Instant,
}

impl Deadline {
    fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, sent: Instant::now() }
    }

    /// tonic reports the end of the client's own timeout as CANCELLED; the API's word for it is DEADLINE_EXCEEDED.
    fn explain(&self, status: Status) -> Status {
        match self.timeout {
            Some(timeout) if status.code() == Code::Cancelled && self.sent.elapsed() >= timeout => {
                Status::deadline_exceeded(format!("no answer within {timeout:?}"))
            }
            _ => status,
        }
    }
}

/// Calls up to `limit` times more while the server is full, stopping or away, after the pause that it asks for.
pub async fn with_retries<T, F>(limit: u32, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut tries = 0;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        tries += 1;
        match retry_pause(&status, tries) {
            Some(pause) if tries <= limit => {
                tracing::info!(code = ?status.code(), message = status.message(), ?pause, "trying again");
                tokio::time::sleep(pause).await;
            }
            _ => return Err(status),
        }
    }
}

/// How long to wait before the next try; `None` if that would not help.
fn retry_pause(status: &Status, tries: u32) -> Option<Duration> {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    // The server's own errors say more than a code; those without are of a connection that broke in the midst of a call.
    let broke = matches!(status.code(), Code::Unknown | Code::Internal) && status.details().is_empty();
    if asked.is_none() && status.code() != Code::Unavailable && !broke {
        return None;
    }
    let doubled = FIRST_PAUSE * 2u32.saturating_pow((tries - 1).min(16));
    let pause = asked.unwrap_or(Duration::ZERO).max(doubled.min(LONGEST_PAUSE));
    // Clients that were refused together must not come back together.
    let spread = RandomState::new().hash_one(tries) % 256;
    Some(pause + pause * spread as u32 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let full = Status::with_error_details(
            Code::ResourceExhausted,
            "full",
            ErrorDetails::with_retry_info(Some(Duration::from_secs(3))),
        );
        assert!(retry_pause(&full, 1).unwrap() >= Duration::from_secs(3));
        assert!(retry_pause(&Status::unavailable("stopping"), 4).unwrap() >= FIRST_PAUSE * 8);
        assert!(retry_pause(&Status::unavailable("stopping"), 1000).unwrap() <= LONGEST_PAUSE * 2);
        assert!(retry_pause(&Status::unknown("h2 protocol error"), 1).is_some());
        let bug = Status::with_error_details(Code::Internal, "bug", ErrorDetails::with_error_info("BUG", "x", []));
        assert_eq!(retry_pause(&bug, 1), None);
        assert_eq!(retry_pause(&Status::invalid_argument("no video"), 1), None);
        assert_eq!(retry_pause(&Status::resource_exhausted("the message is too large for the client"), 1), None);
    }

    #[tokio::test]
    async fn tries_end_with_the_last_status() {
        let mut calls = 0;
        let result: Result<(), Status> = with_retries(1, || {
            calls += 1;
            std::future::ready(Err(Status::unavailable(calls.to_string())))
        })
        .await;
        assert_eq!((result.unwrap_err().message(), calls), ("2", 2));
    }
}
