//! Who may call: bearer tokens, of which the server knows hashes only. They can be replaced while it serves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::codegen::http::{HeaderMap, header};

use crate::app::{AppError, Reason};

/// Tokens that the server takes. Clones share them.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<RwLock<Arc<[Token]>>>);

#[derive(Clone)]
struct Token {
    name: Arc<str>,
    hash: [u8; 32],
    places: Option<Arc<Semaphore>>,
    max_requests: usize,
    /// Cancelled when the server takes it no longer.
    revoked: CancellationToken,
}

/// Whoever made a call, for as long as it runs.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) name: Arc<str>,
    /// Among those of the token.
    _place: Option<OwnedSemaphorePermit>,
    revoked: CancellationToken,
}

impl Caller {
    /// Resolves when the server no longer takes the caller's token.
    pub(super) fn revoked(&self) -> WaitForCancellationFutureOwned {
        self.revoked.clone().cancelled_owned()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a file holds no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It can't be read.
    #[error("can't read the tokens {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line that is none.
    #[error(
        "the tokens' line {line} is not NAME SHA256 [REQUESTS]: a name, the token's SHA-256 in 64 hexadecimal digits, \
         and calls at a time from 1 on, if there is a limit"
    )]
    Line {
        /// From 1.
        line: usize,
    },
    /// Nobody could call.
    #[error("the tokens' file has no token")]
    Empty,
}

impl Tokens {
    /// Reads a file of lines `NAME SHA256 [REQUESTS]`; empty ones and those that begin with `#` are passed over.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let text = std::fs::read_to_string(path).map_err(|error| TokensError::Read { path: path.to_owned(), error })?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, TokensError> {
        let lines = text.lines().map(str::trim).enumerate();
        let tokens: Result<Vec<Token>, TokensError> = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(index, line)| token(line).ok_or(TokensError::Line { line: index + 1 }))
            .collect();
        let tokens = tokens?;
        if tokens.is_empty() { Err(TokensError::Empty) } else { Ok(Self(Arc::new(RwLock::new(tokens.into())))) }
    }

    /// Takes the tokens of a file from now on. Calls with others end. If the file can't be used, all stays as it is.
    pub fn replace(&self, path: &Path) -> Result<(), TokensError> {
        self.replace_by(&Self::read(path)?);
        Ok(())
    }

    fn replace_by(&self, new: &Self) {
        let mut new: Vec<Token> = new.all().to_vec();
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for old in place.iter() {
            let mut same = new.iter_mut().filter(|token| token.hash == old.hash).peekable();
            if same.peek().is_none() {
                old.revoked.cancel();
            }
            for token in same {
                token.revoked = old.revoked.clone();
                if token.max_requests == old.max_requests {
                    token.places = old.places.clone();
                }
            }
        }
        *place = new.into();
    }

    fn all(&self) -> Arc<[Token]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The caller, with its place if there is a limit; or why it may not call.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<Caller, AppError> {
        let value = headers.get(header::AUTHORIZATION).ok_or_else(no_token)?;
        let secret = bearer(value.as_bytes()).ok_or_else(no_token)?;
        let hash: [u8; 32] = Sha256::digest(secret).into();
        // All are looked at, so that the time tells nothing about which one was near.
        let (all, mut found) = (self.all(), None);
        for token in all.iter() {
            let same: Choice = token.hash.ct_eq(&hash);
            if same.into() {
                found = Some(token);
            }
        }
        let token = found.ok_or_else(unknown_token)?;
        let place = match &token.places {
            Some(places) => {
                Some(Arc::clone(places).try_acquire_owned().map_err(|_| AppError::token_busy(token.max_requests))?)
            }
            None => None,
        };
        Ok(Caller { name: Arc::clone(&token.name), _place: place, revoked: token.revoked.clone() })
    }
}

fn no_token() -> AppError {
    AppError::new(Reason::TokenMissing, "this server wants a token: send `authorization: Bearer TOKEN`")
}

pub(super) fn unknown_token() -> AppError {
    AppError::new(Reason::TokenUnknown, "this server does not know the token")
}

/// The token in `Bearer TOKEN`; the scheme in any case, as RFC 9110 has it.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at(value.iter().position(|&byte| byte == b' ')?);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| rest.trim_ascii())
}

fn token(line: &str) -> Option<Token> {
    let mut parts = line.split_whitespace();
    let (name, digits, limit) = (parts.next()?, parts.next()?, parts.next());
    if parts.next().is_some() || digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let max_requests = match limit {
        Some(limit) => Some(limit.parse().ok().filter(|limit| (1..=Semaphore::MAX_PERMITS).contains(limit))?),
        None => None,
    };
    let places = max_requests.map(|limit| Arc::new(Semaphore::new(limit)));
    let (max_requests, revoked) = (max_requests.unwrap_or(usize::MAX), CancellationToken::new());
    Some(Token { name: name.into(), hash, places, max_requests, revoked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Category;

    /// `printf secret | sha256sum`.
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn bearing(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn only_known_tokens_are_admitted_and_only_so_often_at_a_time() {
        let tokens = Tokens::parse(&format!("# who\n\nbatch {SECRET} 1\n")).unwrap();
        let caller = tokens.admit(&bearing("Bearer secret")).unwrap();
        assert_eq!(&*caller.name, "batch");
        let busy = tokens.admit(&bearing("Bearer secret")).unwrap_err();
        assert_eq!(busy.reason, Reason::TooManyRequestsOfToken);
        drop(caller);
        for right in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert!(tokens.admit(&bearing(right)).is_ok(), "{right}");
        }
        for wrong in ["Bearer Secret", "Bearer ", "Basic secret", "secret", "Bearersecret", "Bearer"] {
            assert_eq!(
                tokens.admit(&bearing(wrong)).unwrap_err().reason.category(),
                Category::Unauthenticated,
                "{wrong}"
            );
        }
        assert_eq!(tokens.admit(&HeaderMap::new()).unwrap_err().reason, Reason::TokenMissing);
    }

    #[test]
    fn a_token_that_is_taken_away_is_revoked_and_others_keep_their_places() {
        /// `printf other | sha256sum`.
        const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
        let parse = |text: String| Tokens::parse(&text).unwrap();
        let tokens = parse(format!("a {SECRET} 1\nb {OTHER}"));
        let (a, b) = (bearing("Bearer secret"), bearing("Bearer other"));
        let (kept, gone) = (tokens.admit(&a).unwrap(), tokens.admit(&b).unwrap());
        tokens.replace_by(&parse(format!("renamed {SECRET} 1")));
        assert!(gone.revoked.is_cancelled() && !kept.revoked.is_cancelled());
        assert_eq!(tokens.admit(&b).unwrap_err().reason, Reason::TokenUnknown);
        assert_eq!(tokens.admit(&a).unwrap_err().reason, Reason::TooManyRequestsOfToken, "the one that runs counts");
        drop(kept);
        assert_eq!(&*tokens.admit(&a).unwrap().name, "renamed");
    }

    #[test]
    fn lines_that_are_no_tokens_are_named() {
        for line in ["batch", "batch secret", "batch zz 1", &format!("batch {SECRET} 0"), &format!("a {SECRET} 1 1")] {
            assert!(matches!(Tokens::parse(&format!("#\n{line}")), Err(TokensError::Line { line: 2 })), "{line}");
        }
        assert!(matches!(Tokens::parse("# none\n"), Err(TokensError::Empty)));
    }
}
