//! Several processes that train one network: each takes its share of every batch, and their gradients are summed.
//!
//! [`Collective`] is all that the trainer asks of them. [`Tcp`] connects a few CPU machines by plain sockets; NCCL, which
//! GPUs want, would be another implementation of the trait.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Processes that train together. All call the same functions in the same order, with slices of the same length.
pub trait Collective: fmt::Debug {
    /// This process, from 0 to less than [`world_size`](Self::world_size). Rank 0 writes the files.
    fn rank(&self) -> usize;

    /// Processes in all.
    fn world_size(&self) -> usize;

    /// Replaces `values` by their sums over all processes: the same bits everywhere.
    fn sum(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// [`sum`](Self::sum) of a few values in double precision.
    fn sum_exact(&mut self, values: &mut [f64]) -> Result<(), CollectiveError>;
}

/// Why processes can't train together.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// No such process.
    #[error("rank is {rank}; allowed is less than the world size of {world_size}")]
    Rank {
        /// Asked for.
        rank: usize,
        /// Processes in all.
        world_size: usize,
    },
    /// The rendezvous failed.
    #[error("can't meet the other processes at {address}: {source}")]
    Rendezvous {
        /// Where rank 0 listens.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not all came.
    #[error("after {waited:?} {missing} of {world_size} processes are missing at {address}")]
    Missing {
        /// How long was waited.
        waited: Duration,
        /// How many are not there.
        missing: usize,
        /// Processes in all.
        world_size: usize,
        /// Where rank 0 listens.
        address: String,
    },
    /// A process that is not of this training.
    #[error("a process came that says it is {found}; expected are {expected}")]
    Stranger {
        /// What it says.
        found: String,
        /// What fits.
        expected: String,
    },
    /// A process went away.
    #[error("the connection to rank {rank} is lost: {source}")]
    Lost {
        /// The process at the other end.
        rank: usize,
        /// What the system said.
        source: io::Error,
    },
    /// This process was told to stop while it waited for others.
    #[error("told to stop while waiting for other processes")]
    Stopped,
    /// Processes do different things.
    #[error("rank {rank} sent {actual} values; expected are {expected}")]
    Length {
        /// The process at the other end.
        rank: usize,
        /// In its message.
        actual: u64,
        /// In this process.
        expected: u64,
    },
}

/// One process on its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn sum(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn sum_exact(&mut self, _values: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// Processes around rank 0, which sums what the others send, in the order of ranks, and sends it back.
///
/// Not authenticated and not encrypted: for networks whose machines trust each other.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    world_size: usize,
    /// Of rank 0: to ranks 1, 2, ...; of the others: to rank 0.
    peers: Vec<TcpStream>,
    buffer: Vec<u8>,
    stop: CancellationToken,
}

/// First bytes of a connection: protocol and version.
const GREETING: [u8; 8] = *b"kinetos1";
/// Protocol, world size and rank.
const HELLO_LEN: usize = 24;
/// How long a connection may take to say who it is.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Bytes sent at a time.
const CHUNK: usize = 1 << 18;
/// How long a process may take for what others wait for, such as a long validation or a slow step.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long a process that was told to stop still waits for the others: long enough that most steps under way end, and
/// short enough for an orchestrator, which kills after 10 seconds or more.
const PARTING: Duration = Duration::from_secs(8);
/// How often a process that waits looks whether it was told to stop.
const LOOK: Duration = Duration::from_millis(50);

impl Tcp {
    /// Meets the other processes at `address`, where rank 0 listens, for at most `timeout` or until `stop` is cancelled.
    /// Later, too, nothing is waited for much longer once `stop` is cancelled.
    pub fn connect(
        rank: usize,
        world_size: usize,
        address: &str,
        timeout: Duration,
        stop: CancellationToken,
    ) -> Result<Self, CollectiveError> {
        if rank >= world_size {
            return Err(CollectiveError::Rank { rank, world_size });
        }
        let rendezvous = |source| CollectiveError::Rendezvous { address: address.to_owned(), source };
        let peers = if rank == 0 {
            let listener = TcpListener::bind(address).map_err(rendezvous)?;
            accept(&listener, world_size, address, timeout, &stop)?
        } else {
            let mut stream = reach(address, timeout, &stop)?;
            let hello = [GREETING, (world_size as u64).to_le_bytes(), (rank as u64).to_le_bytes()].concat();
            stream.write_all(&hello).map_err(rendezvous)?;
            vec![stream]
        };
        for peer in &peers {
            peer.set_nodelay(true).map_err(rendezvous)?;
            peer.set_read_timeout(Some(LOOK)).map_err(rendezvous)?;
            peer.set_write_timeout(Some(LOOK)).map_err(rendezvous)?;
        }
        Ok(Self { rank, world_size, peers, buffer: vec![0; CHUNK], stop })
    }

    fn reduce<T: Number>(&mut self, values: &mut [T]) -> Result<(), CollectiveError> {
        let Self { rank, peers, buffer, stop, .. } = self;
        if *rank > 0 {
            let mut root = Link::new(&mut peers[0], 0, stop);
            root.send(values, buffer)?;
            return root.receive(values, buffer, |value, sum| *value = sum);
        }
        for (rank, peer) in (1..).zip(peers.iter_mut()) {
            Link::new(peer, rank, stop).receive(values, buffer, |value, other| *value = *value + other)?;
        }
        for (rank, peer) in (1..).zip(peers.iter_mut()) {
            Link::new(peer, rank, stop).send(values, buffer)?;
        }
        Ok(())
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.reduce(values)
    }

    fn sum_exact(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.reduce(values)
    }
}

/// Accepts ranks 1 to `world_size` - 1, in whatever order they come.
///
/// Each connection has a thread that hears who it is, so that one which says nothing keeps nobody waiting. A rank that
/// comes again was started again: its new connection takes the old one's place.
fn accept(
    listener: &TcpListener,
    world_size: usize,
    address: &str,
    timeout: Duration,
    stop: &CancellationToken,
) -> Result<Vec<TcpStream>, CollectiveError> {
    let rendezvous = |source| CollectiveError::Rendezvous { address: address.to_owned(), source };
    listener.set_nonblocking(true).map_err(rendezvous)?;
    let mut peers: Vec<Option<TcpStream>> = (1..world_size).map(|_| None).collect();
    // Of the connections, by rank: which one it was.
    let mut numbers = vec![0; world_size];
    let (greeted, arrivals) = mpsc::channel();
    let (begin, mut connections) = (Instant::now(), 0u64);
    loop {
        peers.iter_mut().for_each(|peer| *peer = peer.take().filter(is_there));
        let missing = peers.iter().filter(|peer| peer.is_none()).count();
        if missing == 0 {
            return Ok(peers.into_iter().flatten().collect());
        }
        if stop.is_cancelled() {
            return Err(CollectiveError::Stopped);
        }
        if begin.elapsed() >= timeout {
            return Err(CollectiveError::Missing { waited: timeout, missing, world_size, address: address.to_owned() });
        }
        match listener.accept() {
            Ok((stream, _)) => {
                connections += 1;
                let (greeted, number) = (greeted.clone(), connections);
                let hear = move || {
                    if let Some(arrival) = hear_hello(stream) {
                        // Nobody listens any more once all are there.
                        let _ = greeted.send((number, arrival));
                    }
                };
                thread::Builder::new().name("greet".to_owned()).spawn(hear).map_err(rendezvous)?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(rendezvous(error)),
        }
        let Ok((number, arrival)) = arrivals.recv_timeout(LOOK) else { continue };
        let Arrival { stream, world_size: theirs, rank } = arrival;
        match rank.checked_sub(1).and_then(|index| peers.get_mut(index)) {
            Some(place) if theirs == world_size => {
                // The threads may tell in another order than the connections came.
                if number > numbers[rank] {
                    (*place, numbers[rank]) = (Some(stream), number);
                }
            }
            _ => {
                let found = format!("rank {rank} of {theirs}");
                let expected = format!("ranks 1 to {} of {world_size}", world_size - 1);
                return Err(CollectiveError::Stranger { found, expected });
            }
        }
    }
}

/// Whether the process at the other end is still there: one that ended has closed its connection.
fn is_there(peer: &TcpStream) -> bool {
    let looked = peer.set_nonblocking(true).and_then(|()| peer.peek(&mut [0]));
    let is_there = match looked {
        Ok(count) => count > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    is_there && peer.set_nonblocking(false).is_ok()
}

/// A connection that said who it is.
struct Arrival {
    stream: TcpStream,
    world_size: usize,
    rank: usize,
}

/// Who a connection is. `None` for port scanners and probes of orchestrators, which connect and leave, or say nothing.
fn hear_hello(mut stream: TcpStream) -> Option<Arrival> {
    stream.set_nonblocking(false).ok()?;
    let mut hello = [0; HELLO_LEN];
    let end = Instant::now() + HELLO_TIME;
    let mut heard = 0;
    while heard < HELLO_LEN {
        // Each read by itself may take the time that is left: bytes that drip in don't make it longer.
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        stream.set_read_timeout(Some(left)).ok()?;
        match stream.read(&mut hello[heard..]) {
            Ok(0) => return None,
            Ok(count) => heard += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let (greeting, numbers) = hello.split_at(GREETING.len());
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let (world_size, rank) = numbers.split_at(8);
    let [world_size, rank] = [world_size, rank].map(|bytes| usize::try_from(number(bytes)).unwrap_or(usize::MAX));
    (*greeting == GREETING).then_some(Arrival { stream, world_size, rank })
}

/// Connects, trying again while rank 0 is not there yet.
fn reach(address: &str, timeout: Duration, stop: &CancellationToken) -> Result<TcpStream, CollectiveError> {
    let begin = Instant::now();
    loop {
        // Names are looked up anew: those of pods appear when the pods do.
        let tried = address.to_socket_addrs().and_then(|found| TcpStream::connect(&*found.collect::<Vec<_>>()));
        match tried {
            Ok(stream) => return Ok(stream),
            Err(_) if stop.is_cancelled() => return Err(CollectiveError::Stopped),
            Err(_) if begin.elapsed() < timeout => thread::sleep(LOOK),
            Err(source) => return Err(CollectiveError::Rendezvous { address: address.to_owned(), source }),
        }
    }
}

/// For how long a peer is waited for.
struct Wait<'a> {
    stop: &'a CancellationToken,
    began: Instant,
    told: Option<Instant>,
}

impl<'a> Wait<'a> {
    fn new(stop: &'a CancellationToken) -> Self {
        Self { stop, began: Instant::now(), told: None }
    }

    /// An error once it was long enough.
    fn look(&mut self, rank: usize) -> Result<(), CollectiveError> {
        if self.stop.is_cancelled() && self.told.get_or_insert_with(Instant::now).elapsed() >= PARTING {
            return Err(CollectiveError::Stopped);
        }
        if self.began.elapsed() >= PATIENCE {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("it was silent for {PATIENCE:?}"));
            return Err(CollectiveError::Lost { rank, source });
        }
        Ok(())
    }
}

/// The connection to another process while numbers go over it.
struct Link<'a> {
    stream: &'a mut TcpStream,
    /// At the other end.
    rank: usize,
    wait: Wait<'a>,
}

impl<'a> Link<'a> {
    fn new(stream: &'a mut TcpStream, rank: usize, stop: &'a CancellationToken) -> Self {
        Self { stream, rank, wait: Wait::new(stop) }
    }

    fn send<T: Number>(&mut self, values: &[T], buffer: &mut [u8]) -> Result<(), CollectiveError> {
        self.write(&(values.len() as u64).to_le_bytes())?;
        for values in values.chunks(CHUNK / T::BYTES) {
            let bytes = &mut buffer[..values.len() * T::BYTES];
            bytes.chunks_exact_mut(T::BYTES).zip(values).for_each(|(bytes, value)| value.write(bytes));
            self.write(bytes)?;
        }
        Ok(())
    }

    fn receive<T: Number>(
        &mut self,
        values: &mut [T],
        buffer: &mut [u8],
        join: impl Fn(&mut T, T),
    ) -> Result<(), CollectiveError> {
        let mut length = [0; 8];
        self.read(&mut length)?;
        let (actual, expected) = (u64::from_le_bytes(length), values.len() as u64);
        if actual != expected {
            return Err(CollectiveError::Length { rank: self.rank, actual, expected });
        }
        for values in values.chunks_mut(CHUNK / T::BYTES) {
            let bytes = &mut buffer[..values.len() * T::BYTES];
            self.read(bytes)?;
            values.iter_mut().zip(bytes.chunks_exact(T::BYTES)).for_each(|(value, bytes)| join(value, T::read(bytes)));
        }
        Ok(())
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), CollectiveError> {
        while !bytes.is_empty() {
            match self.stream.read(bytes) {
                Ok(0) => return Err(self.lost(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended"))),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) => self.bear(error)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), CollectiveError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.bear(error)?,
            }
        }
        Ok(())
    }

    /// Goes on waiting if the error says no more than that nothing came.
    fn bear(&mut self, error: io::Error) -> Result<(), CollectiveError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.wait.look(self.rank),
            _ => Err(self.lost(error)),
        }
    }

    fn lost(&self, source: io::Error) -> CollectiveError {
        CollectiveError::Lost { rank: self.rank, source }
    }
}

/// A number that is sent.
trait Number: Copy + std::ops::Add<Output = Self> {
    const BYTES: usize;
    fn write(self, bytes: &mut [u8]);
    fn read(bytes: &[u8]) -> Self;
}

impl Number for f32 {
    const BYTES: usize = 4;

    fn write(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("4 bytes"))
    }
}

impl Number for f64 {
    const BYTES: usize = 8;

    fn write(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    fn connect(rank: usize, world_size: usize, address: &str, timeout: Duration) -> Result<Tcp, CollectiveError> {
        Tcp::connect(rank, world_size, address, timeout, CancellationToken::new())
    }

    /// Connects to an address where somebody will listen soon.
    fn knock(address: &str) -> TcpStream {
        reach(address, LONG, &CancellationToken::new()).unwrap()
    }

    #[test]
    fn every_process_gets_the_same_sums() {
        let address = free_address();
        let process = |rank: usize| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut tcp = connect(rank, 3, &address, LONG).unwrap();
                let mut values: Vec<f32> = (0..200_000).map(|i| (i % 7) as f32 + rank as f32).collect();
                tcp.sum(&mut values).unwrap();
                let mut exact = [1e-300 * rank as f64];
                tcp.sum_exact(&mut exact).unwrap();
                (values, exact)
            })
        };
        let threads = [2, 0, 1].map(process);
        let expected: Vec<f32> = (0..200_000).map(|i| 3.0 * (i % 7) as f32 + 3.0).collect();
        for thread in threads {
            let (values, exact) = thread.join().unwrap();
            assert_eq!((values == expected, exact), (true, [3e-300]));
        }
    }

    #[test]
    fn process_that_never_comes_is_told() {
        let error = connect(0, 3, "127.0.0.1:0", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("2 of 3 processes are missing"), "{error}");
        assert!(matches!(connect(3, 3, "127.0.0.1:0", Duration::ZERO), Err(CollectiveError::Rank { .. })));
    }

    #[test]
    fn process_that_dies_is_told() {
        let address = free_address();
        let dying = thread::spawn({
            let address = address.clone();
            move || connect(1, 2, &address, LONG).unwrap().sum(&mut [1.0]).unwrap()
        });
        let mut tcp = connect(0, 2, &address, LONG).unwrap();
        tcp.sum(&mut [1.0]).unwrap();
        dying.join().unwrap();
        let error = tcp.sum(&mut [1.0]).unwrap_err();
        assert_eq!(error.to_string(), "the connection to rank 1 is lost: it ended");
    }

    #[test]
    fn connection_that_says_nothing_keeps_nobody_waiting() {
        let address = free_address();
        let root = thread::spawn({
            let address = address.clone();
            move || connect(0, 2, &address, LONG).map(|tcp| tcp.peers.len())
        });
        let _silent = knock(&address);
        let begin = Instant::now();
        let _other = connect(1, 2, &address, LONG).unwrap();
        assert_eq!(root.join().unwrap().unwrap(), 1);
        assert!(begin.elapsed() < HELLO_TIME, "the silent connection was waited for: {:?}", begin.elapsed());
    }

    #[test]
    fn rank_that_comes_back_takes_its_old_place() {
        let address = free_address();
        let root = thread::spawn({
            let address = address.clone();
            move || {
                let mut tcp = connect(0, 3, &address, LONG).unwrap();
                let mut values = [1.0];
                tcp.sum(&mut values).unwrap();
                values
            }
        });
        let killed = connect(1, 3, &address, LONG).unwrap();
        drop(killed);
        let process = |rank: usize| {
            let address = address.clone();
            thread::spawn(move || {
                let mut values = [10.0];
                connect(rank, 3, &address, LONG).unwrap().sum(&mut values).unwrap();
                values
            })
        };
        let again = process(1);
        let last = process(2);
        assert_eq!([root, again, last].map(|thread| thread.join().unwrap()), [[21.0]; 3]);
    }

    #[test]
    fn stop_is_heard_in_the_rendezvous_and_while_a_peer_is_silent() {
        for rank in [0, 1] {
            let (address, stop) = (free_address(), CancellationToken::new());
            let waiting = thread::spawn({
                let stop = stop.clone();
                move || Tcp::connect(rank, 2, &address, PATIENCE, stop).map(|_| ())
            });
            stop.cancel();
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(error, CollectiveError::Stopped), "rank {rank}: {error}");
        }
        let (address, stop) = (free_address(), CancellationToken::new());
        let silent = thread::spawn({
            let address = address.clone();
            move || connect(1, 2, &address, LONG).unwrap()
        });
        let mut tcp = Tcp::connect(0, 2, &address, LONG, stop.clone()).unwrap();
        let _silent = silent.join().unwrap();
        stop.cancel();
        assert!(matches!(tcp.sum(&mut [1.0]), Err(CollectiveError::Stopped)));
    }
}
