//! gRPC-web: what browsers can speak of gRPC, over HTTP/1.1 too. It becomes gRPC before anything else looks at it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response, StatusCode, Version};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};

use crate::server::protocol::media_type;

/// Translates requests and answers of gRPC-web. Others pass.
#[derive(Debug, Clone)]
pub(crate) struct WebLayer;

#[derive(Debug, Clone)]
pub(crate) struct WebService<S> {
    inner: S,
    translated: GrpcWebService<S>,
}

impl<S: Clone> Layer<S> for WebLayer
where
    GrpcWebLayer: Layer<S, Service = GrpcWebService<S>>,
{
    type Service = WebService<S>;

    fn layer(&self, inner: S) -> WebService<S> {
        WebService { translated: GrpcWebLayer::new().layer(inner.clone()), inner }
    }
}

impl<S> Service<Request<Body>> for WebService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        std::task::ready!(self.inner.poll_ready(context))?;
        Service::<Request<Body>>::poll_ready(&mut self.translated, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = media_type(request.headers());
        if kind.starts_with("application/grpc-web") {
            return Box::pin(self.translated.call(request));
        }
        if kind.starts_with("application/grpc") && request.version() < Version::HTTP_2 {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            return Box::pin(std::future::ready(Ok(response)));
        }
        Box::pin(self.inner.call(request))
    }
}
