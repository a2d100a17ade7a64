//! A stand-in for the Hugging Face Hub: repositories with commits, and elsewhere the files that are large.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;

/// A running hub; away when it is dropped.
pub(crate) struct HubSite {
    address: SocketAddr,
    shelf: Shared,
    _runtime: Runtime,
}

type Shared = Arc<Mutex<Shelf>>;

/// What the hub has, and how it behaves.
#[derive(Default)]
pub(crate) struct Shelf {
    repositories: HashMap<String, Repository>,
    /// Large files by checksum.
    files: HashMap<String, Bytes>,
    /// What was asked for since somebody last looked, such as `GET /cdn/...`, with its token.
    pub(crate) asked: Vec<(String, Option<String>)>,
    /// Repositories for those who send this token.
    pub(crate) token: Option<String>,
    pub(crate) gated: bool,
    /// Sends other bytes than it announces.
    pub(crate) corrupt: bool,
    /// Breaks off the next answers after so many bytes each.
    pub(crate) cuts: Vec<usize>,
    /// Answers the next requests with this status.
    pub(crate) failing: Vec<StatusCode>,
    pub(crate) knows_ranges: bool,
    /// Answers files with nothing.
    pub(crate) silent: bool,
}

#[derive(Default)]
struct Repository {
    /// Commits of branches and tags.
    revisions: HashMap<String, String>,
    /// Checksums by path.
    commits: HashMap<String, BTreeMap<String, String>>,
}

impl HubSite {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shelf = Shared::new(Mutex::new(Shelf { knows_ranges: true, ..Shelf::default() }));
        let routes = Router::new()
            .route("/api/models/{organisation}/{name}/revision/{revision}", get(list))
            .route("/{organisation}/{name}/resolve/{revision}/{*file}", get(resolve))
            .route("/cdn/{checksum}", get(send))
            .with_state(Arc::clone(&shelf));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { serve(listener, routes).await });
        Self { address, shelf, _runtime: runtime }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    /// A commit of a branch or tag with exactly these files; gives its hash.
    pub(crate) fn commit(&self, repository: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let mut shelf = self.shelf();
        let paths: BTreeMap<String, String> =
            files.iter().map(|(path, bytes)| ((*path).to_owned(), sha256(bytes))).collect();
        for (_, bytes) in files {
            shelf.files.insert(sha256(bytes), Bytes::copy_from_slice(bytes));
        }
        let repository = shelf.repositories.entry(repository.to_owned()).or_default();
        let commit = sha256(format!("{} {paths:?}", repository.commits.len()).as_bytes())[..40].to_owned();
        repository.commits.insert(commit.clone(), paths);
        repository.revisions.insert(revision.to_owned(), commit.clone());
        commit
    }

    /// What was asked for since the last call, without tokens.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf().asked).into_iter().map(|(what, _)| what).collect()
    }
}

impl Shelf {
    /// Notes a request, and the answer if that is none of what is on the shelf.
    fn begin(&mut self, request: &Request, needs_token: bool) -> Option<Response> {
        let token = request.headers().get(header::AUTHORIZATION).map(|token| token.to_str().unwrap().to_owned());
        self.asked.push((format!("{} {}", request.method(), request.uri().path()), token.clone()));
        if let Some(status) = self.failing.pop() {
            return Some(status.into_response());
        }
        let wanted = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if !needs_token || wanted.is_none() || token == wanted {
            return None;
        }
        let code = if self.gated { "GatedRepo" } else { "RepoNotFound" };
        Some((StatusCode::UNAUTHORIZED, [("x-error-code", code)]).into_response())
    }

    fn files(&self, repository: &str, revision: &str) -> Result<(String, &BTreeMap<String, String>), Response> {
        let missing = |code: &'static str| (StatusCode::NOT_FOUND, [("x-error-code", code)]).into_response();
        let repository = self.repositories.get(repository).ok_or_else(|| missing("RepoNotFound"))?;
        let commit = repository.revisions.get(revision).map_or(revision, String::as_str);
        let files = repository.commits.get(commit).ok_or_else(|| missing("RevisionNotFound"))?;
        Ok((commit.to_owned(), files))
    }
}

async fn list(
    State(shelf): State<Shared>,
    Path((organisation, name, revision)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let mut shelf = shelf.lock().unwrap();
    if let Some(other) = shelf.begin(&request, true) {
        return other;
    }
    match shelf.files(&format!("{organisation}/{name}"), &revision) {
        Ok((commit, files)) => {
            let siblings: Vec<_> = files.keys().map(|file| json!({"rfilename": file})).collect();
            json!({"sha": commit, "siblings": siblings}).to_string().into_response()
        }
        Err(missing) => missing,
    }
}

/// Leads to the file elsewhere: `localhost` is another host than the address that the hub has.
async fn resolve(
    State(shelf): State<Shared>,
    Path((organisation, name, revision, file)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    let mut shelf = shelf.lock().unwrap();
    if let Some(other) = shelf.begin(&request, true) {
        return other;
    }
    let (commit, files) = match shelf.files(&format!("{organisation}/{name}"), &revision) {
        Ok(found) => found,
        Err(missing) => return missing,
    };
    let Some(checksum) = files.get(&file) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    let host = request.headers()[header::HOST].to_str().unwrap().replace("127.0.0.1", "localhost");
    let headers = [
        ("x-repo-commit", commit),
        ("x-linked-etag", format!("\"{checksum}\"")),
        ("x-linked-size", shelf.files[checksum].len().to_string()),
        ("location", format!("http://{host}/cdn/{checksum}")),
    ];
    (StatusCode::FOUND, headers).into_response()
}

async fn send(State(shelf): State<Shared>, Path(checksum): Path<String>, request: Request) -> Response {
    let mut shelf = shelf.lock().unwrap();
    if let Some(other) = shelf.begin(&request, false) {
        return other;
    }
    let mut file = shelf.files[&checksum].to_vec();
    let len = file.len();
    if shelf.corrupt {
        file[len / 2] ^= 1;
    }
    let start = if shelf.knows_ranges { range_start(request.headers()) } else { None };
    let bytes = Bytes::from(file).slice(start.unwrap_or(0)..);
    let length = (header::CONTENT_LENGTH, bytes.len().to_string());
    let body = if shelf.silent {
        Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>())
    } else if let Some(cut) = shelf.cuts.pop() {
        let rest = std::iter::once(Err(std::io::Error::other("cut")));
        let all = std::iter::once(Ok(bytes.slice(..cut.min(bytes.len())))).chain(rest);
        // The bytes go on their way before the connection breaks.
        Body::from_stream(tokio_stream::iter(all).then(|chunk| async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            chunk
        }))
    } else {
        bytes.into()
    };
    match start {
        Some(start) => {
            let range = (header::CONTENT_RANGE, format!("bytes {start}-{}/{len}", len - 1));
            (StatusCode::PARTIAL_CONTENT, [length, range], body).into_response()
        }
        None => ([length], body).into_response(),
    }
}

fn range_start(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::RANGE)?.to_str().unwrap().strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
