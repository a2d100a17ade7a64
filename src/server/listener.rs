//! Where a server listens for calls: a port, or a socket in the file system.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::connections::Accept;

/// What the address of a socket in the file system begins with.
const UNIX: &str = "unix:";

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `HOST:PORT`, the host being a name or a number.
    Port(String),
    /// `unix:PATH`: the socket's file.
    Path(PathBuf),
}

/// A text that is no [`ListenAddress`].
#[derive(Debug, thiserror::Error)]
#[error("expected HOST:PORT, such as 127.0.0.1:50051, localhost:0 or [::1]:50051, or unix:PATH")]
pub struct NoListenAddress;

impl FromStr for ListenAddress {
    type Err = NoListenAddress;

    fn from_str(text: &str) -> Result<Self, NoListenAddress> {
        if let Some(path) = text.strip_prefix(UNIX) {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(NoListenAddress) } else { Ok(Self::Path(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(NoListenAddress)?;
        let is_host = !host.is_empty() && (!host.contains(':') || text.parse::<SocketAddr>().is_ok());
        if is_host && port.parse::<u16>().is_ok() { Ok(Self::Port(text.to_owned())) } else { Err(NoListenAddress) }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => f.write_str(address),
            Self::Path(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Takes connections.
#[derive(Debug)]
pub enum Listener {
    /// At a port.
    Port(TcpListener),
    /// At a file, which is removed when this is dropped.
    Path(UnixListener, SocketFile),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Port(listener)
    }
}

impl Listener {
    /// Begins to listen. A name may have several addresses, of which the first that can be had is taken; a socket that
    /// another server left behind is replaced.
    pub async fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Port(address) => TcpListener::bind(address).await.map(Self::Port),
            ListenAddress::Path(path) => {
                remove_if_abandoned(path).await?;
                let listener = UnixListener::bind(path)?;
                Ok(Self::Path(listener, SocketFile(path.clone())))
            }
        }
    }

    /// Where it listens in fact: with the port that it got.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Port(listener) => Ok(ListenAddress::Port(listener.local_addr()?.to_string())),
            Self::Path(_, file) => Ok(ListenAddress::Path(file.0.clone())),
        }
    }

    /// Whether only processes of this machine can connect.
    pub fn is_local(&self) -> io::Result<bool> {
        match self {
            Self::Port(listener) => Ok(listener.local_addr()?.ip().is_loopback()),
            Self::Path(..) => Ok(true),
        }
    }
}

impl Accept for Listener {
    type Io = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Port(listener) => Accept::accept(listener).await.map(Either::Left),
            Self::Path(listener, _) => listener.accept().await.map(|(stream, _)| Either::Right(stream)),
        }
    }
}

/// The file of a socket. Dropping it removes the file.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it already did the same.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes a socket to which nobody listens any more, such as one of a server that was killed.
async fn remove_if_abandoned(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(path).await
        && error.kind() == ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// A connection to a client, by TCP or by a socket in the file system.
pub(super) type Accepted = Either<TcpStream, UnixStream>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ports_of_hosts_or_paths() {
        for text in ["127.0.0.1:50051", "localhost:0", "[::1]:50051", "0.0.0.0:1"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap(), ListenAddress::Port(text.to_owned()));
        }
        for text in ["unix:/run/k.sock", "unix:///run/k.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap(), ListenAddress::Path("/run/k.sock".into()));
        }
        assert_eq!("unix:k.sock".parse::<ListenAddress>().unwrap(), ListenAddress::Path("k.sock".into()));
        for text in ["", "50051", ":50051", "localhost", "localhost:", "localhost:70000", "::1:50051", "unix:"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k.sock");
        // Closing a listener leaves its file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = ListenAddress::Path(path.clone());
        let listener = Listener::bind(&address).await.unwrap();
        assert_eq!(listener.address().unwrap(), address);
        assert_eq!(Listener::bind(&address).await.unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, b"no socket").unwrap();
        assert!(Listener::bind(&address).await.is_err() && path.exists());
    }
}
