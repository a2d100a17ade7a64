//! `GET /v1/models` and `GET /v1/models/{name}`.

use std::collections::HashMap;

use axum::extract::{Path, Query, State};
use axum::response::Response;

use super::error::ApiError;
use super::{Http, answers};
use crate::app::ModelSelector;
use crate::proto::{self, GetModelResponse, ListModelsResponse};

pub(super) async fn list(State(http): State<Http>) -> Response {
    answers::message(&ListModelsResponse::of(&http.app))
}

pub(super) async fn get(
    State(http): State<Http>,
    Path(name): Path<String>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let version = query.remove("version").unwrap_or_default();
    let (spec, is_default) = http.app.model(&ModelSelector { name, version })?;
    Ok(answers::message(&GetModelResponse { model: Some(proto::model(&spec, is_default)) }))
}
