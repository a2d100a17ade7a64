//! The protocol over HTTP: `/v2`.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, StatusCode};

use super::{describe, grpc, infer, json};
use crate::app::{App, AppError, Deadline, ModelSelector, Reason};
use crate::oip;
use crate::server::http::body::collect;
use crate::server::http::error::response;
use crate::server::protocol::{Protocol, media_type};

/// Where the JSON of a body ends and its tensors begin.
const JSON_LENGTH: &str = "inference-header-content-length";

/// Bytes of a body without tensors.
const LONGEST_JSON: usize = 64 << 10;

/// An error of the protocol.
#[derive(Debug)]
struct InferenceError(AppError);

impl<E: Into<AppError>> From<E> for InferenceError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for InferenceError {
    fn into_response(self) -> Response {
        response(Protocol::InferenceHttp, self.0)
    }
}

type Answer = Result<Response, InferenceError>;

/// The names in a path.
#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    version: String,
}

impl From<Named> for ModelSelector {
    fn from(Named { name, version }: Named) -> Self {
        Self { name, version }
    }
}

pub(in crate::server) fn router(app: App) -> Router {
    let model = Router::new()
        .route("/", get(metadata))
        .route("/ready", get(model_ready))
        .route("/config", get(config))
        .route("/stats", get(statistics))
        .route("/infer", post(model_infer));
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(StatusCode::OK))
        .route("/v2/health/ready", get(server_ready))
        .route("/v2/models/stats", get(all_statistics))
        .nest("/v2/models/{name}", model.clone())
        .nest("/v2/models/{name}/versions/{version}", model)
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{name}/load", post(load))
        .route("/v2/repository/models/{name}/unload", post(unload))
        .with_state(app)
}

static DEFINITIONS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(oip::FILE_DESCRIPTOR_SET).expect("our own definitions are valid"));

/// The names of the protocol, and numbers as they are: not proto3 JSON.
const WRITTEN: SerializeOptions =
    SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);

fn written<M: Message + Name>(message: &M) -> Vec<u8> {
    let definition = DEFINITIONS.get_message_by_name(&M::full_name()).expect("it is defined");
    let message = DynamicMessage::decode(definition, message.encode_to_vec().as_slice())
        .expect("a message is what its definition says");
    let mut json = Vec::new();
    message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &WRITTEN).expect("it can be JSON");
    json
}

fn respond(json: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json.into()).into_response()
}

fn ready(is_ready: bool) -> StatusCode {
    if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn server() -> Response {
    respond(written(&describe::server()))
}

async fn server_ready(State(app): State<App>) -> StatusCode {
    ready(app.is_ready())
}

async fn model_ready(State(app): State<App>, Path(model): Path<Named>) -> Answer {
    let model = model.into();
    // A model that is not there is another thing than one that is not ready.
    app.engine(&model)?;
    Ok(ready(describe::is_ready(&app, &model)).into_response())
}

async fn metadata(State(app): State<App>, Path(model): Path<Named>) -> Answer {
    Ok(respond(written(&describe::metadata(&app, &model.into())?)))
}

async fn config(State(app): State<App>, Path(model): Path<Named>) -> Answer {
    Ok(respond(written(&describe::config(&app, &model.into())?)))
}

async fn statistics(State(app): State<App>, Path(model): Path<Named>) -> Answer {
    Ok(respond(written(&describe::statistics(&app, &model.into())?)))
}

async fn all_statistics(State(app): State<App>) -> Answer {
    Ok(respond(written(&describe::statistics(&app, &ModelSelector::default())?)))
}

/// What a body without tensors may say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    ready: bool,
    parameters: HashMap<String, Value>,
}

async fn read(app: &App, body: Body) -> Result<Asked, AppError> {
    let (bytes, _room) = collect(app, body, LONGEST_JSON).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Asked::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| json::malformed(&error))
}

async fn index(State(app): State<App>, request: Request) -> Answer {
    let asked = read(&app, request.into_body()).await?;
    let models: Vec<Vec<u8>> = describe::index(&app, asked.ready).iter().map(written).collect();
    Ok(respond([b"[".as_slice(), &models.join(&b','), b"]"].concat()))
}

async fn load(State(app): State<App>, Path(model): Path<Named>, request: Request) -> Answer {
    refuse_forms(request.headers())?;
    grpc::refuse_parameters(read(&app, request.into_body()).await?.parameters.keys())?;
    app.load_model(model.name).await?;
    Ok(StatusCode::OK.into_response())
}

async fn unload(State(app): State<App>, Path(model): Path<Named>, request: Request) -> Answer {
    refuse_forms(request.headers())?;
    // The one parameter that Triton knows, `unload_dependents`, is about ensembles.
    read(&app, request.into_body()).await?;
    app.unload_model(model.name).await?;
    Ok(StatusCode::OK.into_response())
}

/// Browsers send forms to other sites without asking these.
fn refuse_forms(headers: &HeaderMap) -> Result<(), AppError> {
    match media_type(headers).as_ref() {
        "text/plain" | "multipart/form-data" | "application/x-www-form-urlencoded" => {
            Err(AppError::new(Reason::UnsupportedMediaType, "this call takes application/json"))
        }
        _ => Ok(()),
    }
}

async fn model_infer(State(app): State<App>, Path(model): Path<Named>, request: Request) -> Answer {
    app.refuse_if_full()?;
    let deadline: Option<Deadline> = request.extensions().get().copied();
    let json_length = json_length(request.headers())?;
    let limit = app.memory.max_message();
    let (body, _room) = collect(&app, request.into_body(), limit).await?;
    let (message, asked) = json::read(model.into(), body, json_length)?;
    let _permit = app.video_permit()?;
    let answer = infer::infer(&app, message, deadline).await?;
    let (json, tensors) = json::write(answer, &asked);
    let mut response = respond(Body::empty());
    if !tensors.is_empty() {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(JSON_LENGTH, HeaderValue::from(json.len()));
    }
    *response.body_mut() = Body::from(Bytes::from([json, tensors].concat()));
    Ok(response)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, AppError> {
    let Some(length) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    length.map(Some).ok_or_else(|| AppError::new(Reason::InvalidTensor, format!("{JSON_LENGTH} is not a number")))
}
