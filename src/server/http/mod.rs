//! The HTTP API, in JSON. `docs/http.md` describes it.

mod answers;
pub(in crate::server) mod body;
mod classify;
pub(in crate::server) mod error;
mod form;
mod json;
mod models;
mod openapi;
pub(in crate::server) mod options;
#[cfg(feature = "web")]
mod page;
mod table;
mod watch;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::routing::{get, post};
use tonic::codegen::http::Method;

use crate::app::quote::Quoted;
use crate::app::{App, AppError, Reason};
use crate::server::oip;
use error::ApiError;
use watch::Watchers;

/// What answers share.
#[derive(Debug, Clone)]
pub(super) struct Http {
    app: App,
    watchers: Watchers,
}

/// All that is answered over HTTP.
pub(super) fn router(app: App) -> Router {
    let inference = oip::http::router(app.clone());
    let router = Router::new()
        .route("/v1/videos:classify", post(classify::classify))
        .route("/v1/uploads/{key}/events", get(classify::watch))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::get))
        .route("/openapi.json", get(openapi::document));
    #[cfg(feature = "web")]
    let router = router.route("/", get(page::index)).route("/{*path}", get(page::file));
    router
        .method_not_allowed_fallback(no_such_method)
        .fallback(no_such_path)
        .with_state(Http { app, watchers: Watchers::default() })
        .merge(inference)
        // Bodies are held to the limits of videos.
        .layer(DefaultBodyLimit::disable())
}

async fn no_such_method(request: Request) -> ApiError {
    // The page takes all paths, for GET only.
    if request.method() != Method::GET && !is_known(request.uri().path()) {
        return no_such_path(request).await;
    }
    let (method, path) = (request.method(), Quoted::text(request.uri().path()));
    AppError::new(Reason::MethodNotAllowed, format!("{path} has no method {method}")).into()
}

fn is_known(path: &str) -> bool {
    path == "/v1/videos:classify" || path.starts_with("/v1/models") || path.starts_with("/v1/uploads/")
}

/// Calls of gRPC that say that they are something else get told what they have to be.
async fn no_such_path(request: Request) -> ApiError {
    let path = request.uri().path();
    let is_grpc = path.split('/').nth(1).is_some_and(|service| service.contains('.') && path.matches('/').count() == 2);
    if is_grpc && request.method() == Method::POST {
        let message = "this is a call of gRPC: its content type is application/grpc or application/grpc-web";
        return AppError::new(Reason::UnsupportedMediaType, message).into();
    }
    let path = Quoted::text(path);
    AppError::new(Reason::PathNotFound, format!("there is nothing at {path}; /openapi.json lists what there is")).into()
}
