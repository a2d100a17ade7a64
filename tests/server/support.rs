//! Starts servers on free ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kinetoscope::classify::Classifier;
use kinetoscope::engine::{Engine, EngineConfig, Executor, ExecutorError, Outputs};
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::rpc::proto::video_classification_service_client::VideoClassificationServiceClient;
use kinetoscope::rpc::proto::{self, video};
use kinetoscope::rpc::{Listeners, ServeOptions, Services, serve};
use kinetoscope::video::{Isolation, Limits, PoolOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A server in this process. Dropping it without [`stop`](Self::stop) leaves it to the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) http_address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<Result<(), tonic::transport::Error>>,
}

pub(crate) type Client = VideoClassificationServiceClient<Channel>;

impl Server {
    /// A server with the built-in model and small limits that tests can exceed.
    pub(crate) async fn start() -> Self {
        let engine = Engine::start(builtin::model().unwrap(), engine_config(), &Metrics::default()).unwrap();
        Self::with_models(vec![engine], limits(), ServeOptions::default()).await
    }

    pub(crate) async fn with_models(models: Vec<Engine>, limits: Limits, options: ServeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_address = http.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let pool = PoolOptions { threads: 2, open_videos: 8 };
        let classifier = Classifier::new(limits, Isolation::None, pool, Arc::clone(&metrics));
        let services = Services { classifier, models, metrics };
        let listeners = Listeners { grpc: listener, http: Some(http) };
        let done = tokio::spawn(serve(listeners, services, options, async {
            let _ = stopped.await;
        }));
        Self { address, http_address, stop, done }
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
    EngineConfig::new(1, EngineConfig::DEFAULT_MAX_BATCH)
}

pub(crate) fn limits() -> Limits {
    Limits { max_bytes: 2 << 20, max_frames: 400, ..Limits::default() }
}

/// A model that takes its time and finds all classes equally likely.
pub(crate) struct Slow(pub(crate) Duration);

impl Executor for Slow {
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
        // Not for the clips of the warm-up, which are black.
        if clips.iter().any(|clip| clip.iter().any(|&value| value > 0)) {
            std::thread::sleep(self.0);
        }
        Ok(Outputs { logits: vec![0.0; clips.len() * builtin::spec().labels.len()], embeddings: Vec::new() })
    }
}

pub(crate) fn slow_engine(per_batch: Duration) -> Engine {
    let config = EngineConfig::new(1, 1);
    let build = move || -> Result<Box<dyn Executor>, ExecutorError> { Ok(Box::new(Slow(per_batch))) };
    Engine::with_workers(builtin::spec(), config, 1, Box::new(build), &Metrics::default()).unwrap()
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
