//! Which web pages may call the server. A browser sends what any page wants to any address that it can reach, and so into
//! networks that the page's author can't.

use std::net::IpAddr;

use tonic::codegen::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HOST, ORIGIN, VARY,
};
use tonic::codegen::http::uri::Authority;
use tonic::codegen::http::{HeaderMap, HeaderValue, Uri};

use crate::app::quote::Quoted;
use crate::app::{AppError, Reason};

/// What a page may send, and read of an answer.
const ALLOWED_METHODS: &str = "GET, POST, OPTIONS";
const ALLOWED_HEADERS: &str = "authorization, content-type, accept, x-request-id, x-grpc-web, x-user-agent, grpc-timeout, \
                               inference-header-content-length";
const EXPOSED_HEADERS: &str = "x-request-id, retry-after, grpc-status, grpc-message, grpc-status-details-bin, \
                               inference-header-content-length";

/// An origin whose pages may call, such as `https://app.example.org`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedOrigin {
    text: HeaderValue,
    authority: Authority,
}

/// A text that is no origin.
#[derive(Debug, thiserror::Error)]
#[error("expected SCHEME://HOST[:PORT] without a path, such as https://app.example.org")]
pub struct NoOrigin;

impl std::str::FromStr for AllowedOrigin {
    type Err = NoOrigin;

    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        let uri: Uri = text.parse().map_err(|_| NoOrigin)?;
        let authority = uri.authority().cloned().ok_or(NoOrigin)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let is_bare = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
        let text = HeaderValue::from_str(&text).map_err(|_| NoOrigin)?;
        if is_web && is_bare { Ok(Self { text, authority }) } else { Err(NoOrigin) }
    }
}

/// Who may call from a browser.
#[derive(Debug, Clone, Default)]
pub(super) struct OriginPolicy {
    /// Besides pages of the server itself.
    pub(super) allowed: Vec<AllowedOrigin>,
    /// Whether only this machine can connect. A name that leads here is then one of its own, or a trick: a page can let its own name
    /// lead to any address (DNS rebinding).
    pub(super) is_local: bool,
}

impl OriginPolicy {
    /// The origin of another site that may call, if the request comes from one; or why it is refused.
    pub(super) fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<HeaderValue>, AppError> {
        // HTTP/2 has it in the URI.
        let host = uri.authority().map(Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok());
        let host = host.unwrap_or_default().to_ascii_lowercase();
        if self.is_local && !self.answers_to(&host) {
            let message = format!("this server does not answer to the host {}", Quoted::text(&host));
            return Err(AppError::new(Reason::HostNotAllowed, message));
        }
        let Some(origin) = headers.get(ORIGIN) else { return Ok(None) };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        if self.allowed.iter().any(|allowed| allowed.text.as_bytes() == text.as_bytes()) {
            return Ok(Some(origin.clone()));
        }
        let is_own = text.split_once("://").is_some_and(|(_, authority)| authority == host);
        if is_own {
            return Ok(None);
        }
        let message =
            format!("pages of {} may not call this server; `serve --allow-origin` lets them", Quoted::text(&text));
        Err(AppError::new(Reason::OriginNotAllowed, message))
    }

    fn answers_to(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return host.is_empty() };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let is_allowed = |allowed: &AllowedOrigin| allowed.authority.host() == authority.host();
        is_loopback || name == "localhost" || name.ends_with(".localhost") || self.allowed.iter().any(is_allowed)
    }
}

/// Lets a page of another site read an answer.
pub(super) fn expose(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    headers.append(VARY, HeaderValue::from_static("origin"));
}

/// Tells a browser what a page may send.
pub(super) fn answer_preflight(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &OriginPolicy, host: &str, origin: Option<&str>) -> Result<bool, Reason> {
        let mut headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        let checked = policy.check(&headers, &Uri::from_static("/v1/models"));
        checked.map(|origin| origin.is_some()).map_err(|error| error.reason)
    }

    #[test]
    fn pages_of_other_sites_are_refused_unless_they_are_allowed() {
        let policy = OriginPolicy { allowed: vec!["https://App.example.org/".parse().unwrap()], is_local: false };
        assert_eq!(check(&policy, "a.example:50051", None), Ok(false));
        assert_eq!(check(&policy, "a.example:50051", Some("http://a.example:50051")), Ok(false));
        assert_eq!(check(&policy, "a.example:50051", Some("https://app.example.org")), Ok(true));
        for other in [
            "http://a.example",
            "http://evil.example",
            "null",
            "http://app.example.org",
            "https://app.example.org.evil",
        ] {
            assert_eq!(check(&policy, "a.example:50051", Some(other)), Err(Reason::OriginNotAllowed), "{other}");
        }
    }

    #[test]
    fn a_local_server_answers_to_local_names_only() {
        let policy = OriginPolicy { allowed: vec!["https://videos.example.org".parse().unwrap()], is_local: true };
        for host in
            ["localhost:50051", "127.0.0.1:50051", "[::1]:50051", "LOCALHOST", "videos.example.org", "127.8.9.1"]
        {
            assert_eq!(check(&policy, host, None), Ok(false), "{host}");
        }
        for host in ["evil.example:50051", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert_eq!(check(&policy, host, None), Err(Reason::HostNotAllowed), "{host}");
            let own = format!("http://{host}");
            assert_eq!(check(&policy, host, Some(&own)), Err(Reason::HostNotAllowed), "{host}");
        }
    }

    #[test]
    fn origins_have_a_scheme_and_a_host() {
        for wrong in
            ["", "*", "null", "app.example.org", "ftp://a.example", "https://a.example/path", "https://a@b.example"]
        {
            assert!(wrong.parse::<AllowedOrigin>().is_err(), "{wrong}");
        }
        assert!("http://localhost:5173".parse::<AllowedOrigin>().is_ok());
    }
}
