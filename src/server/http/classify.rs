//! `POST /v1/videos:classify`.

use axum::body::Body;
use axum::extract::multipart::Field;
use axum::extract::{FromRequest, Multipart, Path, Query, Request, State};
use axum::response::Response;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt;
use tonic::codegen::http::header::CONTENT_LENGTH;
use tonic::codegen::http::{HeaderMap, Uri};

use super::body::{BodyChunks, FieldChunks, collect, why};
use super::error::ApiError;
use super::form::Form;
use super::options::Options;
use super::watch::Overheard;
use super::{Http, answers, json};
use crate::app::{Answers, AppError, ClassifyRequest, Deadline, Reason, Room, UploadEvent, VideoSource};
use crate::proto::{ClassifyVideoRequest, SegmentMode, video};
use crate::server::protocol::media_type;
use crate::server::request::CallerName;

/// A body of at most so many bytes is read as a whole, which is quicker than by a spool.
const SMALL_BODY: usize = 1 << 20;

/// Bytes of an option in a form.
const LONGEST_OPTION: usize = 4096;

/// What is not an option of the classification among the query's.
const OF_CALL: [&str; 2] = ["timeout", "events"];

type Events = mpsc::Sender<Result<UploadEvent, AppError>>;

/// What a request says besides its body.
struct Asked {
    form: Form,
    options: Options,
    deadline: Option<Deadline>,
}

impl Asked {
    /// The request, with the segments that the form of the answer is about.
    fn request(self, body: Option<Map<String, Value>>) -> Result<ClassifyRequest, AppError> {
        let mut options = self.options;
        options.extend(body.unwrap_or_default())?;
        let mut options = options.read()?;
        if matches!(self.form, Form::Vtt | Form::Csv) && options.segments() == SegmentMode::Unspecified {
            options.set_segments(SegmentMode::Merged);
        }
        ClassifyRequest::from_proto(options, self.deadline)
    }
}

pub(super) async fn classify(State(http): State<Http>, request: Request) -> Result<Response, ApiError> {
    let form = Form::accepted(request.headers(), &Form::ALL)?;
    let (options, key) = query(request.uri())?;
    let asked = Asked { form, options, deadline: request.extensions().get().copied() };
    let key = key.map(|key| (token(&request), key));
    let media_type = media_type(request.headers()).into_owned();
    let length = content_length(request.headers());
    let max_bytes = http.app.limits().max_bytes;
    if media_type != "application/json"
        && length.is_some_and(|length| length > max_bytes.saturating_add(SMALL_BODY as u64))
    {
        let message = format!("the video is {} bytes; the limit is {max_bytes}", length.unwrap_or_default());
        return Err(AppError::new(Reason::VideoTooLarge, message).into());
    }
    http.app.refuse_if_full()?;
    let is_small = length.is_some_and(|length| length <= SMALL_BODY as u64);
    let is_simple = !form.is_of_events() && key.is_none();
    if is_simple && media_type == "application/json" {
        let (video, request, _room) = read_json(&http, asked, request.into_body()).await?;
        return Ok(answers::whole(form, http.app.classify(video, &request, None).await?));
    }
    if is_simple && is_small && media_type != "multipart/form-data" {
        let request_options = asked.request(None)?;
        let (bytes, _room) = collect(&http.app, request.into_body(), SMALL_BODY).await?;
        let video = VideoSource::Content(bytes);
        return Ok(answers::whole(form, http.app.classify(video, &request_options, None).await?));
    }
    let listener = key.and_then(|key| http.watchers.take(&key));
    let events = Answers::of(|events| run(http, asked, media_type, request, events));
    respond(form, Overheard::new(events, listener)).await
}

/// Classifies a video, and tells what happens.
async fn run(http: Http, asked: Asked, media_type: String, request: Request, events: Events) -> Result<(), AppError> {
    match media_type.as_str() {
        "application/json" => {
            let (video, request, _room) = read_json(&http, asked, request.into_body()).await?;
            http.app.classify_with_events(video, &request, &events).await
        }
        "multipart/form-data" => {
            let permit = http.app.upload_permit()?;
            read_form(&http, asked, permit, request, &events).await
        }
        _ => {
            let permit = http.app.upload_permit()?;
            let chunks = BodyChunks(request.into_body());
            http.app.classify_upload(permit, &asked.request(None)?, chunks, &events).await
        }
    }
}

/// An error before the first event is one of HTTP.
async fn respond(form: Form, mut events: Overheard<Answers<UploadEvent, AppError>>) -> Result<Response, ApiError> {
    let mut next = events.next().await;
    if form.is_of_events() {
        let first = next.transpose()?.map(Ok);
        return Ok(answers::events(form, None, tokio_stream::iter(first).chain(events)));
    }
    while let Some(event) = next {
        if let UploadEvent::Classification(classification) = event? {
            return Ok(answers::whole(form, *classification));
        }
        next = events.next().await;
    }
    Err(AppError::internal(&"a classification ended without an answer").into())
}

/// `{"uri": ..., "options": {...}}`, or a whole `ClassifyVideoRequest`, with its memory.
async fn read_json(http: &Http, asked: Asked, body: Body) -> Result<(VideoSource, ClassifyRequest, Room), AppError> {
    // A video in it takes four letters for three bytes.
    let limit = usize::try_from(http.app.limits().max_bytes).unwrap_or(usize::MAX).saturating_mul(4) / 3;
    let limit = limit.saturating_add(64 << 10).min(http.app.memory.capacity());
    let (bytes, room) = collect(&http.app, body, limit).await?;
    let malformed = |error: serde_json::Error| {
        AppError::new(Reason::MalformedRequest, format!("the request can't be read: {error}"))
    };
    let mut message: Map<String, Value> = serde_json::from_slice(&bytes).map_err(malformed)?;
    drop(bytes);
    let options = match message.remove("options") {
        None | Some(Value::Null) => None,
        Some(Value::Object(options)) => Some(options),
        Some(_) => return Err(AppError::new(Reason::MalformedRequest, "options is not an object")),
    };
    if let Some(uri) = message.remove("uri") {
        message.insert("video".to_owned(), serde_json::json!({ "uri": uri }));
    }
    let message: ClassifyVideoRequest = json::decode(Value::Object(message))?;
    let video = match message.video.and_then(|video| video.source) {
        Some(video::Source::Content(content)) => VideoSource::Content(content),
        Some(video::Source::Uri(uri)) => VideoSource::Uri(uri),
        None => {
            let message = "the request has no video: set uri, video.uri or video.content";
            return Err(AppError::new(Reason::VideoMissing, message));
        }
    };
    Ok((video, asked.request(options)?, room))
}

/// A form: options, then the file.
async fn read_form(
    http: &Http,
    mut asked: Asked,
    permit: OwnedSemaphorePermit,
    request: Request,
    events: &Events,
) -> Result<(), AppError> {
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| why(&error))?;
    while let Some(field) = form.next_field().await.map_err(|error| why(&error))? {
        let name = field.name().unwrap_or_default().to_owned();
        if field.file_name().is_some() || matches!(name.as_str(), "file" | "video") {
            let request = asked.request(None)?;
            return http.app.classify_upload(permit, &request, FieldChunks(field), events).await;
        }
        let text = option_text(&name, field).await?;
        match name.as_str() {
            "options" => {
                let options = serde_json::from_str(&text);
                let options = options.map_err(|_| AppError::new(Reason::InvalidOption, "options is not a JSON object"));
                asked.options.extend(options?)?;
            }
            name => asked.options.set(name, &text)?,
        }
    }
    Err(AppError::new(Reason::VideoMissing, "the form has no file: send one, as curl -F file=@VIDEO does"))
}

async fn option_text(name: &str, mut field: Field<'_>) -> Result<String, AppError> {
    let invalid = |message: String| AppError::new(Reason::InvalidOption, message);
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| why(&error))? {
        text.extend_from_slice(&chunk);
        if text.len() > LONGEST_OPTION {
            let name = crate::app::quote::Quoted::text(name);
            return Err(invalid(format!(
                "the form's field {name} is longer than {LONGEST_OPTION} bytes; send the video as a file"
            )));
        }
    }
    String::from_utf8(text).map_err(|_| invalid("a field of the form is not UTF-8".to_owned()))
}

/// Options in the query, and the key of its events.
fn query(uri: &Uri) -> Result<(Options, Option<String>), AppError> {
    let pairs: Query<Vec<(String, String)>> =
        Query::try_from_uri(uri).map_err(|_| AppError::new(Reason::InvalidOption, "the query can't be read"))?;
    let mut options = Options::default();
    let mut key = None;
    for (name, text) in pairs.0 {
        match name.as_str() {
            "events" => key = Some(check_key(text)?),
            name if OF_CALL.contains(&name) => {}
            name => options.set(name, &text)?,
        }
    }
    Ok((options, key))
}

fn check_key(key: String) -> Result<String, AppError> {
    let is_key = (16..=64).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let message = "a key of events has 16 to 64 letters, digits, - and _";
    if is_key { Ok(key) } else { Err(AppError::new(Reason::InvalidOption, message)) }
}

fn token(request: &Request) -> Option<std::sync::Arc<str>> {
    request.extensions().get().map(|CallerName(name)| std::sync::Arc::clone(name))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `GET /v1/uploads/{key}/events`.
pub(super) async fn watch(
    State(http): State<Http>,
    Path(key): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let form = Form::accepted(request.headers(), &Form::OF_EVENTS)?;
    let permit = http.app.stream_permit()?;
    let events = http.watchers.listen(&http.app, permit, (token(&request), check_key(key)?))?;
    let begin = if form == Form::EventStream { ":\n\n" } else { "\n" };
    Ok(answers::events(form, Some(begin), events))
}
