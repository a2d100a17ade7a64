//! The page: files of `web/dist`, which are in the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::{Path, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};
use tonic::codegen::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use tonic::codegen::http::{HeaderMap, HeaderValue, StatusCode};

use super::error::ApiError;

static DIST: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/web/dist");

/// The page asks nobody but this server, and nobody may show it in a frame.
const POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Files whose names have a hash of what is in them; Vite writes them here.
const HASHED: &str = "assets/";

struct File {
    plain: Bytes,
    gzip: Option<Bytes>,
    etag: HeaderValue,
    content_type: &'static str,
}

static FILES: LazyLock<HashMap<String, File>> = LazyLock::new(|| {
    let mut files = HashMap::new();
    collect(&DIST, &mut files);
    files
});

fn collect(directory: &'static Dir<'static>, files: &mut HashMap<String, File>) {
    for file in directory.files() {
        let name = file.path().to_string_lossy().into_owned();
        files.insert(name.clone(), File::new(&name, file.contents()));
    }
    directory.dirs().for_each(|directory| collect(directory, files));
}

impl File {
    fn new(name: &str, content: &'static [u8]) -> Self {
        let content_type = content_type(name);
        let is_text = ["text/", "javascript", "json", "svg", "wasm"].iter().any(|kind| content_type.contains(kind));
        let hash: String = Sha256::digest(content).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Self {
            plain: Bytes::from_static(content),
            gzip: if is_text { gzip(content).filter(|gzip| gzip.len() < content.len()) } else { None },
            etag: HeaderValue::try_from(format!("\"{hash}\"")).expect("hexadecimal is a header value"),
            content_type,
        }
    }
}

fn gzip(content: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

pub(super) async fn index(headers: HeaderMap) -> Response {
    match FILES.get("index.html") {
        Some(file) => respond("index.html", file, &headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn file(Path(path): Path<String>, request: Request) -> Result<Response, ApiError> {
    match FILES.get(&path) {
        Some(file) => Ok(respond(&path, file, request.headers())),
        None => Err(super::no_such_path(request).await),
    }
}

fn respond(name: &str, file: &File, asked: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    let is_same = asked.get(IF_NONE_MATCH).is_some_and(|tags| contains(tags, &file.etag));
    let takes_gzip =
        asked.get(ACCEPT_ENCODING).is_some_and(|encodings| contains(encodings, &"gzip".parse().expect("ASCII")));
    let headers = response.headers_mut();
    let fixed = |text: &'static str| HeaderValue::from_static(text);
    headers.insert(CONTENT_TYPE, fixed(file.content_type));
    headers.insert(ETAG, file.etag.clone());
    let caching = if name.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(CACHE_CONTROL, fixed(caching));
    headers.insert(CONTENT_SECURITY_POLICY, fixed(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    headers.insert(REFERRER_POLICY, fixed("no-referrer"));
    headers.insert(VARY, fixed("accept-encoding"));
    if is_same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let body = match &file.gzip {
        Some(gzip) if takes_gzip => {
            headers.insert(CONTENT_ENCODING, fixed("gzip"));
            gzip
        }
        _ => &file.plain,
    };
    *response.body_mut() = Body::from(body.clone());
    response
}

/// Whether a list of a header names a thing, whatever its parameters or its weakness.
fn contains(list: &HeaderValue, thing: &HeaderValue) -> bool {
    let names = |text: &str| {
        let mut items = text.split(',').map(|item| item.split(';').next().unwrap_or_default().trim());
        items.any(|item| item.trim_start_matches("W/").as_bytes() == thing.as_bytes())
    };
    list.to_str().is_ok_and(names)
}
