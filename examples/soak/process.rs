//! A server in a process of its own, and what it holds.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, ensure};

/// Silent clients are let go of after so long, or their places would be what the drill measures.
const IDLE_TIMEOUT: &str = "2s";

/// Ends with this value.
pub(crate) struct Server {
    process: Child,
    /// Of gRPC.
    pub(crate) address: String,
    http_address: String,
}

/// What a server holds at some moment.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    /// Resident bytes of the server and its decoder processes; what they share counts more than once.
    pub(crate) memory: u64,
    /// Open descriptors of the server.
    pub(crate) descriptors: usize,
    /// Decoder processes, each of which keeps descriptors open.
    pub(crate) decoders: usize,
    /// Calls being worked on.
    pub(crate) in_flight: u64,
    /// Bytes of messages.
    pub(crate) buffered: u64,
}

impl Server {
    pub(crate) fn start(kinetoscope: &Path, threads: usize, spool: &Path) -> anyhow::Result<Self> {
        let mut process = Command::new(kinetoscope)
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--idle-timeout", IDLE_TIMEOUT])
            .args(["--log", "info", "--log-format", "json", "--threads", &threads.to_string(), "--spool"])
            .arg(spool)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        for line in log.by_ref() {
            let line: serde_json::Value = serde_json::from_str(&line?)?;
            let fields = &line["fields"];
            let (Some(address), Some(http_address)) = (fields["address"].as_str(), fields["http_address"].as_str())
            else {
                continue;
            };
            let (address, http_address) = (address.to_owned(), http_address.to_owned());
            // Nobody reads the log, but the server must be able to write it.
            std::thread::spawn(move || log.for_each(drop));
            return Ok(Self { process, address, http_address });
        }
        anyhow::bail!("the server ended with {}", process.wait()?)
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let server = self.process.id();
        let decoders = children(server)?;
        let metrics = self.metrics()?;
        let gauge = |name: &str| {
            let values = metrics.lines().filter(|line| line.starts_with(name));
            values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
        };
        Ok(Usage {
            memory: resident(server) + decoders.iter().copied().map(resident).sum::<u64>(),
            descriptors: fs::read_dir(format!("/proc/{server}/fd"))?.count(),
            decoders: decoders.len(),
            in_flight: gauge("kinetoscope_requests_in_flight"),
            buffered: gauge("kinetoscope_buffered_bytes"),
        })
    }

    fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.http_address)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        ensure!(page.contains("# EOF"), "the metrics break off");
        Ok(page)
    }

    /// Asks the server to stop and waits for its end.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let asked = Command::new("kill").arg(self.process.id().to_string()).status().context("can't run kill")?;
        ensure!(asked.success(), "the server is gone already");
        Ok(self.process.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Usage {
    /// Whether nothing of a load is left, if `before` was without one. Decoder processes stay, to be used again.
    pub(crate) fn is_back_to(&self, before: &Self) -> bool {
        self.in_flight == 0
            && self.buffered == 0
            && (self.descriptors <= before.descriptors || self.decoders > before.decoders)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, descriptors, decoders, in_flight, buffered } = self;
        let mib = *memory as f64 / f64::from(1 << 20);
        write!(
            f,
            "{mib:.0} MiB with {decoders} decoders, {descriptors} descriptors, {in_flight} calls, {buffered} bytes of messages"
        )
    }
}

fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{parent}/task"))? {
        // A thread may end while it is looked at.
        let list = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(children)
}

/// Resident bytes; 0 if the process is gone.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    kibibytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}
