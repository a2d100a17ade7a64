//! Calls a running server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::proto::video_classification_service_client::VideoClassificationServiceClient;
use super::proto::{self, video};

/// Responses with every label of every clip of a long video exceed gRPC's usual 4 MiB.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// A connection to a server.
#[derive(Debug, Clone)]
pub struct Client {
    inner: VideoClassificationServiceClient<Channel>,
}

impl Client {
    /// Connects to `http://HOST:PORT`; a bare `HOST:PORT` is completed.
    pub async fn connect(server: &str, connect_timeout: Duration) -> Result<Self, tonic::transport::Error> {
        let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let channel = Endpoint::from_shared(url)?.connect_timeout(connect_timeout).connect().await?;
        let inner = VideoClassificationServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE_BYTES)
            .max_encoding_message_size(usize::MAX);
        Ok(Self { inner })
    }

    /// Classifies one encoded video, within `timeout` if there is one.
    pub async fn classify_video(
        &mut self,
        content: Bytes,
        options: proto::ClassificationOptions,
        timeout: Option<Duration>,
    ) -> Result<proto::VideoClassification, Status> {
        let video = proto::Video { source: Some(video::Source::Content(content)) };
        let mut request = Request::new(proto::ClassifyVideoRequest { video: Some(video), options: Some(options) });
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let sent = Instant::now();
        let response = self.inner.classify_video(request).await.map_err(|status| match timeout {
            // tonic reports the end of the client's own timeout as CANCELLED; the API's word for it is this.
            Some(timeout) if status.code() == Code::Cancelled && sent.elapsed() >= timeout => {
                Status::deadline_exceeded(format!("no answer within {timeout:?}"))
            }
            _ => status,
        })?;
        let response = response.into_inner();
        response.classification.ok_or_else(|| Status::internal("the server's response holds no classification"))
    }
}
