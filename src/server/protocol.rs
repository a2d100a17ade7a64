//! What a request is by its headers: over which protocol it comes, and which call it is.

use std::borrow::Cow;
use std::time::Duration;

use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, Method, Uri};

use super::grpc::messages::Sending;
use super::http::options::parse_seconds;
use crate::app::{AppError, Reason};

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// How requests and answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    /// The HTTP API and the page.
    Http,
    /// The Open Inference Protocol over HTTP, whose errors look different.
    InferenceHttp,
}

impl Protocol {
    pub(super) fn of(headers: &HeaderMap, uri: &Uri) -> Self {
        match media_type(headers).as_ref() {
            "application/grpc" | "application/grpc+proto" => Self::Grpc,
            _ if uri.path() == "/v2" || uri.path().starts_with("/v2/") => Self::InferenceHttp,
            _ => Self::Http,
        }
    }

    /// How long the client gives the call.
    pub(super) fn timeout(self, headers: &HeaderMap, uri: &Uri) -> Result<Option<Duration>, AppError> {
        if self == Self::Grpc {
            return Ok(headers.get(GRPC_TIMEOUT).and_then(parse_timeout));
        }
        let query = uri.query().unwrap_or_default();
        let timeout = query.split('&').find_map(|pair| pair.strip_prefix("timeout="));
        let parse = |text| {
            let message = "timeout is no time; write seconds, such as 10 or 2.5s";
            let seconds = parse_seconds(text).filter(|seconds| !seconds.is_zero());
            seconds.ok_or_else(|| AppError::new(Reason::InvalidOption, message))
        };
        timeout.map(parse).transpose()
    }
}

/// The content type without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> Cow<'_, str> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(kind.to_ascii_lowercase()),
        false => Cow::Borrowed(kind),
    }
}

/// What is known of a call by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// For metrics; the same for all that we don't serve.
    pub(super) name: &'static str,
    /// How messages of gRPC come.
    pub(super) sending: Sending,
    /// Whether it asks about the server and not about videos.
    pub(super) is_about_server: bool,
    /// Whether anybody may ask, token or not.
    pub(super) is_public: bool,
}

impl Call {
    pub(super) fn of(protocol: Protocol, method: &Method, path: &str) -> Self {
        match protocol {
            Protocol::Grpc => Self::of_grpc(path),
            Protocol::Http | Protocol::InferenceHttp => Self::of_http(method, path),
        }
    }

    fn of_grpc(path: &str) -> Self {
        const METHODS: [(&str, Sending); 20] = [
            ("ClassifyVideo", Sending::One),
            ("ClassifyVideoStream", Sending::Parts),
            ("ClassifyVideos", Sending::Many { key: Some(1) }),
            ("ListModels", Sending::One),
            ("GetModel", Sending::One),
            ("Check", Sending::One),
            // Its answers are the stream.
            ("Watch", Sending::One),
            ("ServerReflectionInfo", Sending::Many { key: None }),
            ("ServerLive", Sending::One),
            ("ServerReady", Sending::One),
            ("ModelReady", Sending::One),
            ("ServerMetadata", Sending::One),
            ("ModelMetadata", Sending::One),
            ("ModelInfer", Sending::One),
            // Its `id`.
            ("ModelStreamInfer", Sending::Many { key: Some(3) }),
            ("ModelConfig", Sending::One),
            ("ModelStatistics", Sending::One),
            ("RepositoryIndex", Sending::One),
            ("RepositoryModelLoad", Sending::One),
            ("RepositoryModelUnload", Sending::One),
        ];
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = METHODS.into_iter().find(|(known, _)| *known == name);
        let (name, sending) = known.unwrap_or(("other", Sending::One));
        // Load balancers that look after the server's health have no token.
        let is_public = path.starts_with("/grpc.health.");
        Self { name, sending, is_about_server: is_public || path.starts_with("/grpc.reflection."), is_public }
    }

    fn of_http(method: &Method, path: &str) -> Self {
        let mut parts = path.trim_start_matches('/').split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let last = path.rsplit('/').next().unwrap_or_default();
        let name = match (method.as_str(), first, second) {
            ("POST", "v1", "videos:classify") => "POST /v1/videos:classify",
            ("GET", "v1", "uploads") => "GET /v1/uploads/{key}/events",
            ("GET", "v1", "models") if last == "models" => "GET /v1/models",
            ("GET", "v1", "models") => "GET /v1/models/{name}",
            ("GET", "v2", "health") => "GET /v2/health",
            ("POST", "v2", "models") if last == "infer" => "POST /v2/models/{name}/infer",
            ("GET", "v2", "models") => "GET /v2/models",
            ("POST", "v2", "repository") => "POST /v2/repository",
            ("GET", "v2", "") => "GET /v2",
            ("GET", "openapi.json", "") => "GET /openapi.json",
            ("GET" | "HEAD", "" | "index.html" | "assets" | "favicon.ico", _) => "GET /",
            _ => "other",
        };
        let is_about_server = name == "GET /v2/health";
        // The page asks for the token.
        let is_public = is_about_server || !matches!(first, "v1" | "v2");
        Self { name, sending: Sending::One, is_about_server, is_public }
    }
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol: up to eight digits and one of H, M, S, m, u, n.
fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_says_whether_it_is_grpc() {
        let of = |kind: &'static str, path: &'static str| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            Protocol::of(&headers, &Uri::from_static(path))
        };
        for kind in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
            assert_eq!(of(kind, "/x.Y/Z"), Protocol::Grpc, "{kind}");
        }
        for kind in ["", "application/json", "application/grpc-web", "application/grpc+json", "text/html"] {
            assert_eq!(of(kind, "/x.Y/Z"), Protocol::Http, "{kind}");
            assert_eq!(of(kind, "/v2/models/m/infer"), Protocol::InferenceHttp, "{kind}");
        }
    }

    #[test]
    fn timeouts_parse_as_the_protocol_says() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "5", "-5m", "123456789S", "5x", "5.5S"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_page_and_health_need_no_token() {
        let of = |method: Method, path: &str| Call::of(Protocol::Http, &method, path);
        for path in ["/", "/assets/app.js", "/openapi.json", "/v2/health/ready", "/nothing"] {
            assert!(of(Method::GET, path).is_public, "{path}");
        }
        for path in ["/v1/models", "/v1/videos:classify", "/v2", "/v2/models/m/infer", "/v1", "/v1/"] {
            assert!(!of(Method::POST, path).is_public, "{path}");
        }
        assert_eq!(of(Method::GET, "/v1/models/m").name, "GET /v1/models/{name}");
        assert_eq!(of(Method::DELETE, "/v1/models").name, "other");
    }
}
