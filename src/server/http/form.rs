//! The form of an answer, by what the client accepts.

use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::ACCEPT;

use crate::app::{AppError, Reason};

/// How a classification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    /// Events, a line each.
    NdJson,
    /// Events, server-sent.
    EventStream,
    Vtt,
    Csv,
}

impl Form {
    /// The best first.
    pub(super) const ALL: [Self; 5] = [Self::Json, Self::NdJson, Self::EventStream, Self::Vtt, Self::Csv];
    pub(super) const OF_EVENTS: [Self; 2] = [Self::EventStream, Self::NdJson];

    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::NdJson => "application/x-ndjson",
            Self::EventStream => "text/event-stream",
            Self::Vtt => "text/vtt",
            Self::Csv => "text/csv",
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Vtt => "text/vtt; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
            _ => self.media_type(),
        }
    }

    pub(super) fn is_of_events(self) -> bool {
        Self::OF_EVENTS.contains(&self)
    }

    /// The one of `forms` that a client likes most; the first of those that it likes equally.
    pub(super) fn accepted(headers: &HeaderMap, forms: &[Self]) -> Result<Self, AppError> {
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let accept = accept.join(",");
        if accept.trim().is_empty() {
            return Ok(forms[0]);
        }
        let mut best: Option<(f32, Self)> = None;
        for &form in forms {
            let quality = quality(&accept, form.media_type());
            if quality > best.map_or(0.0, |(quality, _)| quality) {
                best = Some((quality, form));
            }
        }
        best.map(|(_, form)| form).ok_or_else(|| {
            let forms: Vec<&str> = forms.iter().map(|form| form.media_type()).collect();
            let message = format!("the Accept header names none of {}", forms.join(", "));
            AppError::new(Reason::NotAcceptable, message)
        })
    }
}

/// How much an `Accept` header likes a media type: what the most specific range of it says (RFC 9110, 12.5.1).
fn quality(accept: &str, media_type: &str) -> f32 {
    let kind = media_type.split('/').next().unwrap_or_default();
    let mut found = (0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specificity = match range.as_str() {
            _ if range == media_type => 3,
            _ if range.strip_suffix("/*") == Some(kind) => 2,
            "*/*" => 1,
            _ => continue,
        };
        let quality = parts.find_map(|parameter| parameter.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
        if specificity > found.0 {
            found = (specificity, quality.unwrap_or(0.0));
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_that_the_client_likes_most() {
        let of =
            |accept: &str| Form::accepted(&HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]), &Form::ALL).ok();
        assert_eq!(Form::accepted(&HeaderMap::new(), &Form::ALL).unwrap(), Form::Json);
        for (accept, form) in [
            ("*/*", Some(Form::Json)),
            ("text/event-stream", Some(Form::EventStream)),
            ("Text/CSV; charset=utf-8", Some(Form::Csv)),
            ("text/*", Some(Form::EventStream)),
            ("text/*, text/event-stream;q=0", Some(Form::Vtt)),
            ("application/json;q=0.5, application/x-ndjson", Some(Form::NdJson)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Form::Json)),
            ("image/png", None),
            ("application/json;q=0", None),
        ] {
            assert_eq!(of(accept), form, "{accept}");
        }
    }
}
