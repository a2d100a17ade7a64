//! Starts servers on free ports.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kinetoscope::classify::Classifier;
use kinetoscope::engine::{Engine, EngineConfig, Executor, ExecutorError};
use kinetoscope::model::builtin;
use kinetoscope::rpc::proto::video_classification_service_client::VideoClassificationServiceClient;
use kinetoscope::rpc::proto::{self, video};
use kinetoscope::rpc::{ServeOptions, Services, serve};
use kinetoscope::video::{Isolation, Limits};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A server in this process. Dropping it without [`stop`](Self::stop) leaves it to the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<Result<(), tonic::transport::Error>>,
}

pub(crate) type Client = VideoClassificationServiceClient<Channel>;

impl Server {
    /// A server with the built-in model and small limits that tests can exceed.
    pub(crate) async fn start() -> Self {
        let engine = Engine::start(&builtin::model().unwrap(), engine_config()).unwrap();
        Self::with_models(vec![engine], limits(), ServeOptions::default()).await
    }

    pub(crate) async fn with_models(models: Vec<Engine>, limits: Limits, options: ServeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let services = Services { classifier: Classifier::new(limits, 2, Isolation::None), models };
        let done = tokio::spawn(serve(listener, services, options, async {
            let _ = stopped.await;
        }));
        Self { address, stop, done }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(self.channel().await).max_encoding_message_size(usize::MAX)
    }

    /// Asks the server to stop; the handle resolves when it has.
    pub(crate) fn stop(self) -> JoinHandle<Result<(), tonic::transport::Error>> {
        self.stop.send(()).unwrap();
        self.done
    }
}

pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig { threads: 1, ..EngineConfig::default() }
}

pub(crate) fn limits() -> Limits {
    Limits { max_bytes: 2 << 20, max_frames: 400, ..Limits::default() }
}

/// A model that takes its time and finds all classes equally likely.
pub(crate) struct Slow(pub(crate) Duration);

impl Executor for Slow {
    fn logits(&mut self, clips: &[&[u8]]) -> Result<Vec<f32>, ExecutorError> {
        std::thread::sleep(self.0);
        Ok(vec![0.0; clips.len() * builtin::spec().labels.len()])
    }
}

pub(crate) fn slow_engine(per_batch: Duration) -> Engine {
    let config = EngineConfig { max_batch: 1, ..engine_config() };
    Engine::with_executor(builtin::spec(), config, Box::new(Slow(per_batch)))
}

pub(crate) fn request(content: impl Into<Bytes>) -> proto::ClassifyVideoRequest {
    let video = proto::Video { source: Some(video::Source::Content(content.into())) };
    proto::ClassifyVideoRequest { video: Some(video), options: None }
}

/// The stable reason in a status, with its code.
pub(crate) fn reason(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().expect("every error carries a google.rpc.ErrorInfo");
    assert_eq!(info.domain, "kinetoscope");
    (status.code(), info.reason)
}
