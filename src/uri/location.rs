//! What a URI means, and whether it is below an allowed one.
//!
//! Only URIs that everybody reads the same way pass: what is compared here is what is fetched later, so nothing may be
//! left that a file system or a server would still resolve (`..`, encoded slashes, user names before the host).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Where a video is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    File,
    Http,
    Https,
    S3,
    Gs,
    Az,
}

impl Scheme {
    const NAMES: [(&str, Self); 6] = [
        ("file", Self::File),
        ("http", Self::Http),
        ("https", Self::Https),
        ("s3", Self::S3),
        ("gs", Self::Gs),
        ("az", Self::Az),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, scheme)| *scheme == self).expect("all are named").0
    }

    /// With hosts, ports and queries, not with buckets.
    pub(super) fn is_web(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::File | Self::S3 | Self::Gs | Self::Az => None,
        }
    }
}

/// Whether a text begins as a URI of a known scheme does.
pub fn is_uri(text: &str) -> bool {
    split_scheme(text).is_some_and(|(scheme, _)| scheme_of(scheme).is_some())
}

fn split_scheme(text: &str) -> Option<(&str, &str)> {
    text.split_once("://")
}

fn scheme_of(name: &str) -> Option<Scheme> {
    Scheme::NAMES.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, scheme)| scheme)
}

/// What is wrong with a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUri {
    /// No scheme that is known.
    #[error("it begins with none of file://, http://, https://, s3://, gs:// and az://")]
    Scheme,
    /// Longer than any sensible one.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// Spaces, control characters, backslashes, letters beyond ASCII.
    #[error("it has a character that has to be percent-encoded")]
    Character,
    /// A `%` without two hexadecimal digits, or no UTF-8 behind them.
    #[error("its percent-encoding is broken")]
    Encoding,
    /// A user name or password.
    #[error("a user name or password may not stand in it")]
    UserInfo,
    /// No host, bucket or container, or no possible one; or one in a file URI.
    #[error("its host, bucket or container is none")]
    Host,
    /// No possible port.
    #[error("its port is none")]
    Port,
    /// Parts that are empty, `.` or `..`, or that hide a slash.
    #[error("its path has a part that is empty, `.` or `..`, or that hides a slash")]
    Segment,
    /// A path that ends with a slash or is empty.
    #[error("it names no file")]
    NoFile,
    /// A query where it means nothing.
    #[error("a query may stand in http and https URIs only")]
    Query,
    /// A fragment.
    #[error("a fragment may not stand in it")]
    Fragment,
}

/// Presigned URLs have some two thousand bytes.
const LONGEST: usize = 8192;

/// A URI taken apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) scheme: Scheme,
    /// In lower case where that means the same; the bucket or container of a cloud; empty for files.
    pub(super) host: String,
    /// As it counts, be it written or not.
    port: Option<u16>,
    /// Decoded.
    pub(super) segments: Vec<String>,
    /// As written, with the first slash.
    path: String,
    query: Option<String>,
}

impl Location {
    /// Scheme, host, path and query as a URL that is requested.
    #[cfg(feature = "object-store")]
    pub(super) fn to_url(&self) -> String {
        let query = self.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
        format!("{self}{query}")
    }

    fn parse(text: &str) -> Result<(Self, bool), InvalidUri> {
        if text.len() > LONGEST {
            return Err(InvalidUri::TooLong);
        }
        let (scheme, rest) = split_scheme(text).ok_or(InvalidUri::Scheme)?;
        let scheme = scheme_of(scheme).ok_or(InvalidUri::Scheme)?;
        if !rest.bytes().all(is_allowed) {
            return Err(InvalidUri::Character);
        }
        if rest.contains('#') {
            return Err(InvalidUri::Fragment);
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_owned())),
            None => (rest, None),
        };
        if query.is_some() && !scheme.is_web() {
            return Err(InvalidUri::Query);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority_of(scheme, authority)?;
        let (segments, is_directory) = segments_of(path)?;
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        Ok((Self { scheme, host, port, segments, path, query }, is_directory))
    }
}

impl FromStr for Location {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        match Self::parse(text)? {
            (_, true) => Err(InvalidUri::NoFile),
            (location, false) => Ok(location),
        }
    }
}

/// Without the query, which may hold secrets.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.host)?;
        if let Some(port) = self.port.filter(|port| Some(*port) != self.scheme.default_port()) {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What URIs have to begin with, whole parts of the path at a time: `s3://bucket/new` is no beginning of
/// `s3://bucket/newer/video.mp4`. One that ends with a slash stands for what is below it, another one also for the single
/// file of that name.
#[derive(Clone, PartialEq, Eq)]
pub struct Prefix {
    location: Location,
    is_directory: bool,
}

impl Prefix {
    pub(super) fn scheme(&self) -> Scheme {
        self.location.scheme
    }

    pub(super) fn segments(&self) -> &[String] {
        &self.location.segments
    }

    /// The bucket or container of a cloud.
    #[cfg(feature = "object-store")]
    pub(super) fn host(&self) -> &str {
        &self.location.host
    }

    /// What of the path of `location` comes after this prefix, if it begins with it.
    pub(super) fn rest(&self, location: &Location) -> Option<Vec<String>> {
        let origin = |location: &Location| (location.scheme, location.port);
        let Location { host, segments, .. } = &self.location;
        if origin(&self.location) != origin(location) || *host != location.host {
            return None;
        }
        let rest = location.segments.strip_prefix(segments.as_slice())?;
        (!rest.is_empty() || !self.is_directory).then(|| rest.to_vec())
    }
}

impl FromStr for Prefix {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let (location, is_directory) = Location::parse(text)?;
        if location.query.is_some() {
            return Err(InvalidUri::Query);
        }
        Ok(Self { location, is_directory })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}

/// The characters of RFC 3986. Others are read differently by different programs, as a backslash for a slash.
fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

fn authority_of(scheme: Scheme, authority: &str) -> Result<(String, Option<u16>), InvalidUri> {
    if authority.contains('@') {
        return Err(InvalidUri::UserInfo);
    }
    if scheme == Scheme::File {
        let is_here = authority.is_empty() || authority.eq_ignore_ascii_case("localhost");
        return if is_here { Ok((String::new(), None)) } else { Err(InvalidUri::Host) };
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if !scheme.is_web() {
        return if is_name(authority) { Ok((authority.to_owned(), None)) } else { Err(InvalidUri::Host) };
    }
    let after_host = authority.find(']').map_or(0, |end| end + 1);
    let colon = authority[after_host..].find(':').map(|at| at + after_host);
    let (host, port) = match colon {
        Some(at) => (&authority[..at], Some(&authority[at + 1..])),
        None => (authority, None),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => {
            // In one way of writing of the many there are.
            let address: Ipv6Addr = address.parse().map_err(|_| InvalidUri::Host)?;
            format!("[{address}]")
        }
        None if is_name(host) => host.to_ascii_lowercase(),
        None => return Err(InvalidUri::Host),
    };
    let port = match port {
        None => scheme.default_port(),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse().ok().filter(|port| *port != 0).ok_or(InvalidUri::Port)?)
        }
        Some(_) => return Err(InvalidUri::Port),
    };
    Ok((host, port))
}

/// The parts of a path, decoded, and whether it ends with a slash (or is empty).
fn segments_of(path: &str) -> Result<(Vec<String>, bool), InvalidUri> {
    let Some(path) = path.strip_prefix('/').filter(|path| !path.is_empty()) else { return Ok((Vec::new(), true)) };
    let (path, is_directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
    let segments = path.split('/').map(|segment| {
        let decoded = decode(segment)?;
        if is_plain(&decoded) { Ok(decoded) } else { Err(InvalidUri::Segment) }
    });
    Ok((segments.collect::<Result<_, _>>()?, is_directory))
}

fn decode(segment: &str) -> Result<String, InvalidUri> {
    let mut bytes = segment.bytes();
    let mut decoded = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                let byte = high.zip(low).map(|(high, low)| (high * 16 + low) as u8);
                byte.ok_or(InvalidUri::Encoding)?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).map_err(|_| InvalidUri::Encoding)
}

/// Whether a decoded part of a path is a name and nothing else to anybody: not to servers that decode twice, take
/// backslashes for slashes or leave out what comes after a semicolon.
fn is_plain(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or_default();
    let lower = segment.to_ascii_lowercase();
    !matches!(name, "" | "." | "..")
        && !segment.contains(['/', '\\'])
        && !segment.chars().any(char::is_control)
        && !["%2e", "%2f", "%5c", "%00"].iter().any(|hidden| lower.contains(hidden))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_allowed(prefix: &str, uri: &str) -> bool {
        let prefix: Prefix = prefix.parse().unwrap();
        uri.parse::<Location>().is_ok_and(|location| prefix.rest(&location).is_some())
    }

    #[test]
    fn what_is_below_a_prefix_is_allowed_however_it_is_written() {
        for (prefix, uri) in [
            ("file:///srv/videos/", "file:///srv/videos/a/b.mp4"),
            ("file:///srv/videos", "FILE://localhost/srv/%76ideos/b.mp4"),
            ("https://media.example.org/clips/", "https://MEDIA.example.org:443/clips/a.mp4?token=a/../b"),
            ("https://media.example.org", "https://media.example.org/a.mp4"),
            ("http://[::1]:8080/", "http://[0:0:0:0:0:0:0:1]:8080/a.mp4"),
            ("s3://bucket/new/", "s3://bucket/new/er/a%20b.mp4"),
            ("gs://bucket/one.mp4", "gs://bucket/one.mp4"),
        ] {
            assert!(is_allowed(prefix, uri), "{uri} is below {prefix}");
        }
    }

    #[test]
    fn what_is_elsewhere_is_not() {
        for (prefix, uri) in [
            ("file:///srv/videos/", "file:///srv/videos2/a.mp4"),
            ("file:///srv/videos/", "file:///srv/Videos/a.mp4"),
            ("https://media.example.org/clips/", "http://media.example.org/clips/a.mp4"),
            ("https://media.example.org/clips/", "https://media.example.org:8443/clips/a.mp4"),
            ("https://media.example.org/clips/", "https://media.example.org.evil.org/clips/a.mp4"),
            ("https://media.example.org/clips/", "https://evil.org/media.example.org/clips/a.mp4"),
            ("https://media.example.org/clips/", "https://media.example.org/clips?/a.mp4"),
            ("s3://bucket/new", "s3://bucket/newer/a.mp4"),
            ("s3://bucket/new", "s3://Bucket/new/a.mp4"),
            ("s3://bucket/new/", "s3://bucket/new"),
            ("s3://bucket/new/", "gs://bucket/new/a.mp4"),
        ] {
            assert!(!is_allowed(prefix, uri), "{uri} is not below {prefix}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_invalid() {
        for (uri, error) in [
            ("/srv/videos/a.mp4", InvalidUri::Scheme),
            ("ftp://host/a.mp4", InvalidUri::Scheme),
            ("file:/srv/a.mp4", InvalidUri::Scheme),
            ("https://host/a b.mp4", InvalidUri::Character),
            ("https://host\\@evil.org/a.mp4", InvalidUri::Character),
            ("https://host/\u{e4}.mp4", InvalidUri::Character),
            ("https://host/a\r\nHost:b/c", InvalidUri::Character),
            ("https://host/%zz.mp4", InvalidUri::Encoding),
            ("https://host/%+1.mp4", InvalidUri::Encoding),
            ("https://host/a%f", InvalidUri::Encoding),
            ("https://host/%ff.mp4", InvalidUri::Encoding),
            ("https://host@evil.org/a.mp4", InvalidUri::UserInfo),
            ("https://user:word@host/a.mp4", InvalidUri::UserInfo),
            ("https:///a.mp4", InvalidUri::Host),
            ("https://ho%73t/a.mp4", InvalidUri::Host),
            ("https://[::1/a.mp4", InvalidUri::Host),
            ("https://[fe80::1%25eth0]/a.mp4", InvalidUri::Host),
            ("https://::1/a.mp4", InvalidUri::Host),
            ("s3://bucket:80/a.mp4", InvalidUri::Host),
            ("file://host/a.mp4", InvalidUri::Host),
            ("https://host:/a.mp4", InvalidUri::Port),
            ("https://host:0/a.mp4", InvalidUri::Port),
            ("https://host:65536/a.mp4", InvalidUri::Port),
            ("https://host:+80/a.mp4", InvalidUri::Port),
            ("https://[::1]x/a.mp4", InvalidUri::Host),
            ("file:///srv/../etc/a", InvalidUri::Segment),
            ("file:///srv/./a", InvalidUri::Segment),
            ("file:///srv/%2e%2E/a", InvalidUri::Segment),
            ("file:///srv/..%2fetc", InvalidUri::Segment),
            ("file:///srv//a", InvalidUri::Segment),
            ("file:///srv/a%00.mp4", InvalidUri::Segment),
            ("https://host/clips/%252e%252e/a", InvalidUri::Segment),
            ("https://host/clips/..;x/a", InvalidUri::Segment),
            ("https://host/clips/..%5ca", InvalidUri::Segment),
            ("https://host/clips/", InvalidUri::NoFile),
            ("https://host", InvalidUri::NoFile),
            ("s3://bucket/a?versionId=1", InvalidUri::Query),
            ("https://host/a#b", InvalidUri::Fragment),
        ] {
            assert_eq!(uri.parse::<Location>().unwrap_err(), error, "{uri}");
        }
        assert_eq!("https://host/a?b".parse::<Prefix>(), Err(InvalidUri::Query));
        assert_eq!(format!("https://host/{}", "a".repeat(LONGEST)).parse::<Location>(), Err(InvalidUri::TooLong));
    }

    #[test]
    fn secrets_of_a_query_are_not_shown() {
        let location: Location = "https://host/a.mp4?signature=secret".parse().unwrap();
        assert!(!format!("{location} {location:?}").contains("secret"));
    }

    #[test]
    fn uris_are_told_from_paths() {
        assert!(is_uri("s3://bucket/a") && is_uri("HTTPS://host/a"));
        assert!(!is_uri("a.mp4") && !is_uri("c:/a.mp4") && !is_uri("rtsp://host/a"));
    }

    proptest! {
        /// However a path is encoded, what is joined to the root stays below it.
        #[test]
        fn no_path_leads_out_of_a_prefix(path in "(/|%2[efEF]|%25|\\.|;|%5c|[a-c]|%61){0,24}") {
            let prefix: Prefix = "file:///a/b/".parse().unwrap();
            let location = format!("file:///a/b/{path}").parse::<Location>();
            if let Some(rest) = location.ok().and_then(|location| prefix.rest(&location)) {
                let joined = rest.iter().fold(std::path::PathBuf::from("/a/b"), |path, segment| path.join(segment));
                prop_assert!(joined.starts_with("/a/b"));
                prop_assert!(joined.components().all(|part| !matches!(part, std::path::Component::ParentDir)));
                prop_assert_eq!(joined.components().count(), 3 + rest.len());
            }
        }
    }
}
