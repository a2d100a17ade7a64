//! Several processes that train one network: each takes its share of every batch, and their gradients are summed.
//!
//! [`Collective`] is all that the trainer asks of them. [`Tcp`] connects a few CPU machines by plain sockets; NCCL, which
//! GPUs want, would be another implementation of the trait.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

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
    #[error("a process came that says it is {found}; expected is {expected}")]
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
}

/// First bytes of a connection: protocol and version.
const GREETING: [u8; 8] = *b"kinetos1";
/// Bytes sent at a time.
const CHUNK: usize = 1 << 18;
/// How long a process may take for what others wait for, such as a long validation or a slow step.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Tcp {
    /// Meets the other processes at `address`, where rank 0 listens, for at most `timeout`.
    pub fn connect(rank: usize, world_size: usize, address: &str, timeout: Duration) -> Result<Self, CollectiveError> {
        if rank >= world_size {
            return Err(CollectiveError::Rank { rank, world_size });
        }
        let rendezvous = |source| CollectiveError::Rendezvous { address: address.to_owned(), source };
        let peers = if rank == 0 {
            let listener = TcpListener::bind(address).map_err(rendezvous)?;
            accept(&listener, world_size, address, timeout)?
        } else {
            let mut stream = reach(address, timeout).map_err(rendezvous)?;
            let hello = [GREETING, (world_size as u64).to_le_bytes(), (rank as u64).to_le_bytes()].concat();
            stream.write_all(&hello).map_err(rendezvous)?;
            vec![stream]
        };
        for peer in &peers {
            peer.set_nodelay(true).map_err(rendezvous)?;
            peer.set_read_timeout(Some(PATIENCE)).map_err(rendezvous)?;
        }
        Ok(Self { rank, world_size, peers, buffer: vec![0; CHUNK] })
    }

    fn reduce<T: Number>(&mut self, values: &mut [T]) -> Result<(), CollectiveError> {
        let Self { rank, peers, buffer, .. } = self;
        if *rank > 0 {
            let lost = |source| CollectiveError::Lost { rank: 0, source };
            send(&mut peers[0], values, buffer).map_err(lost)?;
            return receive(&mut peers[0], 0, values, buffer, |value, sum| *value = sum);
        }
        for (rank, peer) in (1..).zip(peers.iter_mut()) {
            receive(peer, rank, values, buffer, |value, other| *value = *value + other)?;
        }
        for (rank, peer) in (1..).zip(peers.iter_mut()) {
            send(peer, values, buffer).map_err(|source| CollectiveError::Lost { rank, source })?;
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
fn accept(
    listener: &TcpListener,
    world_size: usize,
    address: &str,
    timeout: Duration,
) -> Result<Vec<TcpStream>, CollectiveError> {
    let rendezvous = |source| CollectiveError::Rendezvous { address: address.to_owned(), source };
    listener.set_nonblocking(true).map_err(rendezvous)?;
    let mut peers: Vec<Option<TcpStream>> = (1..world_size).map(|_| None).collect();
    let begin = Instant::now();
    loop {
        let missing = peers.iter().filter(|peer| peer.is_none()).count();
        if missing == 0 {
            return Ok(peers.into_iter().flatten().collect());
        }
        let left = timeout.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(CollectiveError::Missing { waited: timeout, missing, world_size, address: address.to_owned() });
        }
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(error) => return Err(rendezvous(error)),
        };
        stream.set_nonblocking(false).map_err(rendezvous)?;
        stream.set_read_timeout(Some(left)).map_err(rendezvous)?;
        let mut hello = [0; 24];
        // Port scanners and probes of orchestrators connect and leave; they are no reason to stop.
        if stream.read_exact(&mut hello).is_err() || hello[..8] != GREETING {
            continue;
        }
        let number = |range: std::ops::Range<usize>| {
            usize::try_from(u64::from_le_bytes(hello[range].try_into().expect("8 bytes"))).unwrap_or(usize::MAX)
        };
        let (their_world, rank) = (number(8..16), number(16..24));
        let place = rank.checked_sub(1).and_then(|index| peers.get_mut(index));
        match place {
            Some(place @ None) if their_world == world_size => *place = Some(stream),
            _ => {
                let found = format!("rank {rank} of {their_world}");
                let expected = format!("one each of ranks 1 to {} of {world_size}", world_size - 1);
                return Err(CollectiveError::Stranger { found, expected });
            }
        }
    }
}

/// Connects, trying again while rank 0 is not there yet.
fn reach(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let begin = Instant::now();
    loop {
        // Names are looked up anew: those of pods appear when the pods do.
        let tried = address.to_socket_addrs().and_then(|found| TcpStream::connect(&*found.collect::<Vec<_>>()));
        match tried {
            Err(_) if begin.elapsed() < timeout => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
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

fn send<T: Number>(stream: &mut TcpStream, values: &[T], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(&(values.len() as u64).to_le_bytes())?;
    for values in values.chunks(CHUNK / T::BYTES) {
        let bytes = &mut buffer[..values.len() * T::BYTES];
        bytes.chunks_exact_mut(T::BYTES).zip(values).for_each(|(bytes, value)| value.write(bytes));
        stream.write_all(bytes)?;
    }
    stream.flush()
}

fn receive<T: Number>(
    stream: &mut TcpStream,
    rank: usize,
    values: &mut [T],
    buffer: &mut [u8],
    join: impl Fn(&mut T, T),
) -> Result<(), CollectiveError> {
    let lost = |source| CollectiveError::Lost { rank, source };
    let mut length = [0; 8];
    stream.read_exact(&mut length).map_err(lost)?;
    let (actual, expected) = (u64::from_le_bytes(length), values.len() as u64);
    if actual != expected {
        return Err(CollectiveError::Length { rank, actual, expected });
    }
    for values in values.chunks_mut(CHUNK / T::BYTES) {
        let bytes = &mut buffer[..values.len() * T::BYTES];
        stream.read_exact(bytes).map_err(lost)?;
        values.iter_mut().zip(bytes.chunks_exact(T::BYTES)).for_each(|(value, bytes)| join(value, T::read(bytes)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    #[test]
    fn every_process_gets_the_same_sums() {
        let address = free_address();
        let process = |rank: usize| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut tcp = Tcp::connect(rank, 3, &address, Duration::from_secs(10)).unwrap();
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
        let error = Tcp::connect(0, 3, "127.0.0.1:0", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("2 of 3 processes are missing"), "{error}");
        assert!(matches!(Tcp::connect(3, 3, "127.0.0.1:0", Duration::ZERO), Err(CollectiveError::Rank { .. })));
    }

    #[test]
    fn process_that_dies_is_told() {
        let address = free_address();
        let dying = std::thread::spawn({
            let address = address.clone();
            move || drop(Tcp::connect(1, 2, &address, Duration::from_secs(10)).unwrap())
        });
        let mut tcp = Tcp::connect(0, 2, &address, Duration::from_secs(10)).unwrap();
        dying.join().unwrap();
        assert!(matches!(tcp.sum(&mut [1.0]), Err(CollectiveError::Lost { rank: 1, .. })));
    }
}
