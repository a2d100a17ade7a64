//! Connections: how many there are, how long they may take to begin, and which are closed first.
//!
//! Each has a descriptor, of which a process has only so many: decoders, uploads and the HTTP port need theirs. So
//! connections are counted, and where there are too many, one without calls gives way to the next.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tracing::warn;

/// Pause after a failure to accept a connection; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What keeps happening is said again after this time.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// Length of what a client of HTTP/2 sends first.
const PREFACE_LEN: usize = 24;

/// A connection without calls is in use while its last answer may still be on its way.
const LINGER: Duration = Duration::from_secs(1);

/// Where connections come from.
pub(super) trait Accept: Send + Sync + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // A small answer otherwise waits 40 ms for the client to acknowledge what came before it. A client that has gone
        // already is noticed when it is read from.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// The connections of a listener. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    /// How long one may take to begin.
    handshake_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Arc<Use>>,
    warned: Option<Instant>,
}

/// How a connection is used.
#[derive(Debug)]
struct Use {
    calls: AtomicUsize,
    has_begun: AtomicBool,
    /// When it was used last.
    last: Mutex<Instant>,
    close: CancellationToken,
}

impl Use {
    fn touch(&self) {
        *lock(&self.last) = Instant::now();
    }

    fn is_idle(&self) -> bool {
        self.calls.load(Ordering::Acquire) == 0 && !self.close.is_cancelled()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs while they are held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    pub(super) fn new(limit: usize, handshake_timeout: Duration) -> Self {
        Self(Arc::new(Shared { limit: limit.max(1), handshake_timeout, state: Mutex::default() }))
    }

    /// Those of a listener, which is closed when the stream is dropped.
    pub(super) fn incoming<L: Accept>(&self, listener: L) -> Incoming<L::Io> {
        let (sender, connections) = mpsc::channel(1);
        let this = self.clone();
        let task = async move { while sender.send(this.accept(&listener).await).await.is_ok() {} };
        Incoming { connections, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// The next connection. Waits and tries again while none can be accepted.
    pub(super) async fn accept<L: Accept>(&self, listener: &L) -> Connection<L::Io> {
        let mut pause = FIRST_PAUSE;
        loop {
            match listener.accept().await {
                Ok(io) => match self.admit() {
                    Some(usage) => return self.connection(io, usage),
                    None => self.warn(|limit| {
                        warn!(limit, "all connections have calls: new ones are closed");
                    }),
                },
                // The client's fault, or it has gone again.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Mostly there is no descriptor left, and what is ready would be ready again at once.
                    self.warn(|_| warn!(%error, "no connection can be accepted, trying again"));
                    self.close_idlest();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Closes what has no calls, as it becomes so.
    pub(super) async fn close_unused(&self) -> Infallible {
        loop {
            self.close_those_unused_for(LINGER);
            tokio::time::sleep(LINGER / 10).await;
        }
    }

    fn close_those_unused_for(&self, time: Duration) {
        let state = lock(&self.0.state);
        let unused = state.open.values().filter(|usage| usage.is_idle() && lock(&usage.last).elapsed() >= time);
        unused.for_each(|usage| usage.close.cancel());
    }

    /// A place for one more, if need be that of another.
    fn admit(&self) -> Option<Usage> {
        if lock(&self.0.state).open.len() >= self.0.limit && !self.close_idlest() {
            return None;
        }
        let mut state = lock(&self.0.state);
        let id = state.next;
        state.next += 1;
        let usage = Arc::new(Use {
            calls: AtomicUsize::new(0),
            has_begun: AtomicBool::new(false),
            last: Mutex::new(Instant::now()),
            close: CancellationToken::new(),
        });
        state.open.insert(id, Arc::clone(&usage));
        Some(Usage { connections: self.clone(), id, usage })
    }

    fn close_idlest(&self) -> bool {
        let state = lock(&self.0.state);
        let idle = state.open.values().filter(|usage| usage.is_idle());
        let idlest = idle.min_by_key(|usage| *lock(&usage.last));
        idlest.inspect(|usage| usage.close.cancel()).is_some()
    }

    fn connection<IO>(&self, io: IO, usage: Usage) -> Connection<IO> {
        let closed = Box::pin(usage.usage.close.clone().cancelled_owned());
        let late = Box::pin(tokio::time::sleep(self.0.handshake_timeout));
        Connection { io, closed, late: Some(late), usage }
    }

    fn warn(&self, tell: impl FnOnce(usize)) {
        let mut state = lock(&self.0.state);
        if state.warned.is_none_or(|warned| warned.elapsed() >= WARNING_PERIOD) {
            state.warned = Some(Instant::now());
            drop(state);
            tell(self.0.limit);
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Connections as they come.
pub(super) struct Incoming<IO> {
    connections: mpsc::Receiver<Connection<IO>>,
    _task: AbortOnDropHandle<()>,
}

impl<IO> Stream for Incoming<IO> {
    type Item = io::Result<Connection<IO>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// The place of a connection, free when it is dropped.
#[derive(Debug)]
struct Usage {
    connections: Connections,
    id: u64,
    usage: Arc<Use>,
}

impl Drop for Usage {
    fn drop(&mut self) {
        lock(&self.connections.0.state).open.remove(&self.id);
    }
}

/// Says of a connection that it is used. An extension of its requests.
#[derive(Debug, Clone)]
pub(super) struct ConnectionHandle(Arc<Use>);

impl ConnectionHandle {
    /// A call began; drop the guard when it ends.
    pub(super) fn begin_call(&self) -> OpenCall {
        self.0.calls.fetch_add(1, Ordering::AcqRel);
        self.0.has_begun.store(true, Ordering::Relaxed);
        OpenCall(Arc::clone(&self.0))
    }
}

/// A call on a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Arc<Use>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.touch();
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An accepted connection. It ends as if the client had closed it when it is told to, and in an error if it does not begin in
/// time.
#[derive(Debug)]
pub(super) struct Connection<IO> {
    io: IO,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    late: Option<Pin<Box<Sleep>>>,
    usage: Usage,
}

impl<IO> Connection<IO> {
    pub(super) fn handle(&self) -> ConnectionHandle {
        ConnectionHandle(Arc::clone(&self.usage.usage))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut this.io).poll_read(context, out);
        if let Some(late) = &mut this.late {
            if this.usage.usage.has_begun.load(Ordering::Relaxed) {
                this.late = None;
            } else if late.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client took too long to begin")));
            }
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Connection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes));
        self.usage.usage.touch();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, bytes));
        self.usage.usage.touch();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A connection that has begun once there came as much as a client of HTTP/2 sends first, or a whole request.
#[derive(Debug)]
pub(super) struct UntilPreface<IO> {
    io: IO,
    handle: ConnectionHandle,
    missing: usize,
}

impl<IO> UntilPreface<IO> {
    /// `handle` is that of the [`Connection`] below.
    pub(super) fn new(io: IO, handle: ConnectionHandle) -> Self {
        Self { io, handle, missing: PREFACE_LEN }
    }
}

impl<IO> Connected for UntilPreface<IO> {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> ConnectionHandle {
        self.handle.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for UntilPreface<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, out))?;
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(out.filled().len() - before);
            if self.missing == 0 {
                self.handle.0.has_begun.store(true, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for UntilPreface<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
