//! `docs/troubleshooting.md` against the program: every reason, and every warning and error of the log, is there, and every
//! message that is there is one that the program has.

#![cfg(feature = "video")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kinetoscope::server::Reason;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

const GUIDE: &str = include_str!("../docs/troubleshooting.md");

/// Stands for what differs from case to case.
const ANYTHING: &str = "…";

/// The code spans of each cell, row by row, of the tables whose first column is called `heading`.
fn rows(heading: &str) -> Vec<Vec<Vec<String>>> {
    let mut within = false;
    let mut rows = Vec::new();
    for line in GUIDE.lines() {
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix('|')) else {
            within &= line.starts_with("|---");
            continue;
        };
        let cells: Vec<&str> = cells.split(" | ").map(str::trim).collect();
        if within {
            rows.push(cells.into_iter().map(code_spans).collect());
        }
        within |= cells_start_with(line, heading);
    }
    assert!(!rows.is_empty(), "no table has the column {heading}");
    rows
}

fn cells_start_with(line: &str, heading: &str) -> bool {
    line.strip_prefix("| ").and_then(|line| line.strip_prefix(heading)).is_some_and(|rest| rest.starts_with(" |"))
}

/// What stands between backticks: as many at the end as at the start (CommonMark).
fn code_spans(text: &str) -> Vec<String> {
    let mut spans = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('`') {
        let ticks = rest[at..].len() - rest[at..].trim_start_matches('`').len();
        let fence = &rest[at..][..ticks];
        let code = &rest[at + ticks..];
        let end = code.find(fence).unwrap_or_else(|| panic!("a code span does not end: {text}"));
        spans.push(code[..end].trim().to_owned());
        rest = &code[end + ticks..];
    }
    spans
}

/// All that the guide quotes as messages.
fn messages() -> BTreeSet<String> {
    let of_reasons = rows("reason").into_iter().flat_map(|row| row[1].clone());
    let others = rows("message").into_iter().flat_map(|row| row[0].clone());
    of_reasons.chain(others).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    fn collect(directory: &Path, sources: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let program = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
                sources.push((path, program.to_owned()));
            }
        }
    }
    let mut sources = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    sources
}

/// The string literals of Rust code, with [`ANYTHING`] for what is formatted into them.
fn literals(code: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(after) = ["'\"'", "'\\\"'"].iter().find_map(|quote| rest.strip_prefix(quote)) {
            rest = after;
        } else if let Some(literal) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = literal.find(|c| match (c, escaped) {
                ('"', false) => true,
                (c, was) => {
                    escaped = c == '\\' && !was;
                    false
                }
            });
            let end = end.expect("a literal ends");
            literals.push(formatted(&literal[..end]));
            rest = &literal[end + 1..];
        } else {
            rest = &rest[1..];
        }
    }
    literals
}

fn formatted(literal: &str) -> String {
    let mut lines = literal.split("\\\n");
    let mut joined = lines.next().unwrap_or_default().to_owned();
    lines.for_each(|line| joined.push_str(line.trim_start()));
    let mut text = String::new();
    let mut rest = joined.as_str();
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        match (rest.strip_prefix("{{"), rest.find('}')) {
            (Some(after), _) => {
                text.push('{');
                rest = after;
            }
            (None, Some(end)) => {
                text.push_str(ANYTHING);
                rest = &rest[end + 1..];
            }
            (None, None) => break,
        }
    }
    text.push_str(rest);
    one_ellipsis(&text.replace("\\\"", "\""))
}

/// Two things side by side differ as one does.
fn one_ellipsis(text: &str) -> String {
    let mut text = text.to_owned();
    while text.contains("……") {
        text = text.replace("……", ANYTHING);
    }
    text
}

/// The arguments of each call of a macro.
fn calls<'a>(code: &'a str, name: &str) -> Vec<&'a str> {
    code.match_indices(name)
        .map(|(at, _)| {
            let arguments = &code[at + name.len()..];
            let mut depth = 1;
            let end = arguments.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            &arguments[..end.expect("a call ends")]
        })
        .collect()
}

#[test]
fn every_reason_is_explained_and_no_other() {
    let explained: Vec<String> = rows("reason").into_iter().flat_map(|row| row[0].clone()).collect();
    let explained_once: BTreeSet<&str> = explained.iter().map(String::as_str).collect();
    assert_eq!(explained.len(), explained_once.len(), "a reason is there twice: {explained:?}");
    let sent: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(explained_once, sent);
}

#[test]
fn every_warning_and_error_of_the_log_is_explained() {
    let explained = messages();
    let mut found = 0;
    for (path, code) in sources() {
        for arguments in [calls(&code, "warn!("), calls(&code, "error!(")].concat() {
            let message = literals(arguments).pop().unwrap_or_else(|| panic!("{}: {arguments}", path.display()));
            found += 1;
            assert!(message == ANYTHING || explained.contains(&message), "{}: {message:?}", path.display());
        }
    }
    assert!(found > 15, "{found} are too few");
}

/// Messages with other programs' words in them, the system's among them, and what the program says where they are due.
fn what_the_program_says() -> Vec<(&'static str, String)> {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kinetoscope")).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let misspelt = file("kinetoscope.toml", "max_bach = 4");
    let [authority, other] = ["authority", "other"].map(|name| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    });
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let (certificate, key) = (file("server.pem", &certificate.pem()), file("server.key", &key.serialize_pem()));
    let [root, other] = [("root.pem", authority), ("other.pem", other)].map(|(name, ca)| file(name, &ca.pem()));
    let server = Server::start(&["--tls-certificate", &certificate, "--tls-key", &key, "--tls-client-ca", &root]);
    let connect = |host: &str, port: u16, root: &str| {
        run(&["health", "--server", &format!("https://{host}:{port}"), "--ca", root])
    };
    // Mostly the connection ends before the server's words are read.
    let at_times = |words: &str, run: &dyn Fn() -> String| {
        (0..100).map(|_| run()).find(|said| said.contains(words)).unwrap_or_else(|| panic!("{words:?} is never said"))
    };
    vec![
        (
            "can't connect to the server …: transport error: tcp connect error: Connection refused (os error 111)",
            run(&["health", "--server", "127.0.0.1:1"]),
        ),
        (
            "can't connect to the server …: transport error: invalid peer certificate: UnknownIssuer",
            connect("localhost", server.port, &other),
        ),
        (
            "can't connect to the server …: transport error: invalid peer certificate: certificate not valid for name …",
            connect("127.0.0.1", server.port, &root),
        ),
        (
            "can't connect to the server …: transport error: received corrupt message of type InvalidContentType",
            connect("localhost", plain_port(), &root),
        ),
        (
            "Internal: h2 protocol error: …",
            at_times("h2 protocol error", &|| run(&["health", "--server", &format!("localhost:{}", server.port)])),
        ),
        (
            "Unknown: transport error: … received fatal alert: CertificateRequired",
            at_times("CertificateRequired", &|| connect("localhost", server.port, &root)),
        ),
        ("can't listen on …: Address already in use (os error 98)", run(&["serve", "--listen", &taken])),
        (
            "can't listen on …: Cannot assign requested address (os error 99)",
            run(&["serve", "--listen", "192.0.2.1:50051"]),
        ),
        ("…: there is no setting …; did you mean …?", run(&["serve", "--check", "--config", &misspelt])),
        ("invalid value … for …: … is not in …", run(&["serve", "--check", "--max-batch", "999"])),
        ("the following required arguments were not provided:", run(&["serve", "--check", "--tls-key", &key])),
        (
            "the … is no certificate in PEM",
            run(&["serve", "--check", "--tls-certificate", &misspelt, "--tls-key", &key]),
        ),
        (
            "can't write to the spool …: No such file or directory (os error 2)",
            run(&["serve", "--spool", "/nowhere/to/be/found"]),
        ),
    ]
}

/// A port where somebody answers without TLS.
fn plain_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut [0; 16]).unwrap();
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    port
}

/// A running server.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kinetoscope"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            event["address"].as_str()?.rsplit(':').next()?.parse().ok()
        });
        // Keeps the pipe open and empty.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port: port.expect("the server says where it listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_message_is_one_of_the_program() {
    let literals: Vec<String> = sources().iter().flat_map(|(_, code)| literals(code)).collect();
    let said = what_the_program_says();
    for (message, said) in &said {
        assert!(messages().contains(*message), "the guide does not have {message:?}");
        assert!(is_like(said, message), "{message:?}: {said}");
    }
    let missing: Vec<String> = messages()
        .into_iter()
        .filter(|message| !literals.iter().any(|literal| literal.contains(&one_ellipsis(message))))
        .filter(|message| !said.iter().any(|(known, _)| known == message))
        .collect();
    assert!(missing.is_empty(), "the program says none of {missing:#?}");
}

/// Options that guides name and that are other programs'.
const OPTIONS_OF_OTHERS: &[&str] = &[
    "--all-pods",
    "--build-arg",
    "--cap-drop",
    "--cert",
    "--concurrency-range",
    "--data-binary",
    "--disable-pip-version-check",
    "--enable-gpl",
    "--features",
    "--format",
    "--from-file",
    "--grpc",
    "--input-data",
    "--key",
    "--locked",
    "--no-cache",
    "--no-default-features",
    "--now",
    "--open",
    "--parent",
    "--prefix",
    "--privileged",
    "--pull",
    "--python",
    "--quiet",
    "--read-only",
    "--release",
    "--security-opt",
    "--short",
    "--silent",
    "--test",
    "--time",
    "--tmpfs",
];

/// The long options of a command and of those below it.
fn options(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long().map(|long| format!("--{long}")));
    own.chain(command.get_subcommands().flat_map(options)).collect()
}

/// What begins with two dashes and looks like an option.
fn options_named(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        let name: String = text[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        if begins && before.is_none_or(|before| before.is_whitespace() || "`([\"|,/".contains(before)) {
            named.insert(format!("--{}", name.trim_end_matches('-')));
        }
    }
    named
}

#[test]
fn every_option_that_a_guide_names_is_one_of_the_program() {
    let mut command = <kinetoscope::cli::Cli as clap::CommandFactory>::command();
    // Adds --help and --version.
    command.build();
    let known = options(&command);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let guides = files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let guides: Vec<PathBuf> = guides.chain([root.join("README.md"), root.join("CHANGELOG.md")]).collect();
    let mut others = BTreeSet::new();
    let mut unknown = Vec::new();
    for path in guides {
        for option in options_named(&std::fs::read_to_string(&path).unwrap()) {
            if OPTIONS_OF_OTHERS.contains(&option.as_str()) {
                others.insert(option);
            } else if !known.contains(&option) {
                unknown.push(format!("{}: {option}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "the program has none of {unknown:#?}");
    let unused: Vec<_> = OPTIONS_OF_OTHERS.iter().filter(|option| !others.contains(**option)).collect();
    assert!(unused.is_empty(), "no guide names {unused:?}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let broken: Vec<String> = [root.join("README.md"), root.join("weights/README.md"), root.join("benches/README.md")]
        .into_iter()
        .chain(documents)
        .flat_map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
            let broken: Vec<String> = links.filter(|link| !leads_somewhere(&path, link)).collect();
            broken.into_iter().map(move |link| format!("{}: {link}", path.display()))
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Whether the file and the heading that a link names are there; those of the web are not looked at.
fn leads_somewhere(document: &Path, link: &str) -> bool {
    if link.contains("://") {
        return true;
    }
    let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
    let target = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    let Some(heading) = heading else { return target.exists() };
    let text = std::fs::read_to_string(target).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| anchor(line.trim_start_matches('#')) == heading)
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Whether the parts of a message are in a text in order.
fn is_like(text: &str, message: &str) -> bool {
    let mut rest = text;
    message.split(ANYTHING).all(|part| {
        let at = rest.find(part);
        rest = at.map_or("", |at| &rest[at + part.len()..]);
        at.is_some()
    })
}
