//! `grpc.health.v1.Health`: whether the server takes requests. Watchers are told of changes only, and until the server
//! stops.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::app::{AppError, Reason};
use crate::{oip, proto};

/// What can be asked about; the empty name is the server. All stand and fall together.
const SERVICES: [&str; 3] =
    ["", proto::video_classification_service_server::SERVICE_NAME, oip::grpc_inference_service_server::SERVICE_NAME];

/// How the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Serving,
    NotServing,
    /// It does not serve and won't again: who watches is told and let go.
    Stopping,
}

/// Tells the last [`State`].
#[derive(Debug)]
pub(crate) struct HealthService(pub(crate) watch::Receiver<State>);

fn status(service: &str, state: State) -> ServingStatus {
    match state {
        _ if !SERVICES.contains(&service) => ServingStatus::ServiceUnknown,
        State::Serving => ServingStatus::Serving,
        State::NotServing | State::Stopping => ServingStatus::NotServing,
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match status(&request.get_ref().service, *self.0.borrow()) {
            ServingStatus::ServiceUnknown => {
                Err(AppError::new(Reason::ServiceUnknown, "this server has no such service").into())
            }
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Watch;

    /// As the protocol has it, who asks about a service that isn't there is told so and goes on waiting for it.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let states = WatchStream::new(self.0.clone());
        Ok(Response::new(Watch { service: request.into_inner().service, states, told: None, ended: false }))
    }
}

/// The answers to one watcher.
#[derive(Debug)]
pub(crate) struct Watch {
    service: String,
    states: WatchStream<State>,
    told: Option<ServingStatus>,
    ended: bool,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let Some(state) = ready!(Pin::new(&mut self.states).poll_next(context)) else { return Poll::Ready(None) };
            self.ended = state == State::Stopping;
            let status = status(&self.service, state);
            if self.told.replace(status) != Some(status) {
                return Poll::Ready(Some(Ok(HealthCheckResponse { status: status.into() })));
            }
        }
    }
}
