//! The binary as people run it: `serve`, `classify --server`, exit statuses, signals.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::media::Media;

pub(crate) fn kinetoscope() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kinetoscope"))
}

pub(crate) fn run(args: &[&str]) -> Output {
    kinetoscope().args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A running `kinetoscope serve`, killed if a test ends early.
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: String,
    http_address: String,
    /// What it says after it says where it listens.
    log: std::sync::mpsc::Receiver<Value>,
}

impl Serving {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(args: &[&str]) -> Self {
        Self::with_variables(args, &[])
    }

    fn with_variables(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = kinetoscope()
            .envs(variables.iter().copied())
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let [address, http_address] = lines
            .find_map(|line| {
                let event: Value = serde_json::from_str(&line.unwrap()).expect("the log is JSON");
                let at = |key| Some(event.get(key)?.as_str()?.to_owned());
                Some([at("address")?, at("http_address")?])
            })
            .expect("the server says where it listens");
        // Keeps the pipe open and empty.
        let (sender, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("the log is JSON"));
            }
        });
        Self { child, address, http_address, log }
    }

    /// The next line of the log with this message; waits for it, but not for ever.
    pub(crate) fn log_line(&self, message: &str) -> Value {
        loop {
            let line = self.log.recv_timeout(std::time::Duration::from_secs(30)).expect("the line comes");
            if line.get("message").is_some_and(|said| said.as_str() == Some(message)) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    fn terminate(mut self) -> std::process::ExitStatus {
        self.signal("-TERM");
        self.child.wait().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn video(media: &Media) -> String {
    let args = "-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 40 -pix_fmt yuv420p";
    media.make("video.mp4", args).to_str().unwrap().to_owned()
}

#[test]
fn server_and_local_run_give_the_same_answer_and_sigterm_ends_in_success() {
    let media = Media::new();
    let video = video(&media);
    let serving = Serving::start();
    let served = run(&["classify", &video, "--server", &serving.address, "--json", "--segments=clips"]);
    assert!(served.status.success(), "{}", text(&served.stderr));
    let local = run(&["classify", &video, "--json", "--segments=clips"]);
    assert!(local.status.success(), "{}", text(&local.stderr));
    assert_eq!(text(&served.stdout), text(&local.stdout));

    let answer: Value = serde_json::from_slice(&served.stdout).unwrap();
    assert_eq!(answer["video"], video.as_str());
    assert_eq!((&answer["frames"], &answer["clips"], &answer["partial"]), (&40.into(), &3.into(), &false.into()));
    assert_eq!(answer["duration_seconds"], 1.6);
    assert_eq!(answer["labels"].as_array().unwrap().len(), 5);
    assert_eq!(answer["segments"].as_array().unwrap().len(), 3);
    assert!(serving.terminate().success());
}

#[test]
fn one_bad_video_fails_the_run_but_not_the_others() {
    let media = Media::new();
    let good = video(&media);
    let bad = media.write("bad.mp4", b"not a video at all");
    let output = run(&["classify", bad.to_str().unwrap(), "missing.mp4", &good]);
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(errors.contains("bad.mp4") && errors.contains("missing.mp4"), "{errors}");
    assert!(text(&output.stdout).contains("40 frames"), "{}", text(&output.stdout));
}

#[test]
fn health_tells_a_server_that_serves_from_one_that_is_not_there() {
    let server = Serving::start();
    let healthy = run(&["health", "--server", &server.address]);
    assert!(healthy.status.success() && healthy.stdout == b"serving\n", "{healthy:?}");
    let address = server.address.clone();
    server.terminate();
    let gone = run(&["health", "--server", &address]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains(&format!("can't connect to the server {address}")), "{gone:?}");
    // Takes connections and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let late = run(&["health", "--server", &mute.local_addr().unwrap().to_string(), "--timeout", "200ms"]);
    assert!(late.status.code() == Some(1) && text(&late.stderr).contains("within 200ms"), "{late:?}");
}

#[test]
fn no_server_and_no_model_are_clear_errors() {
    let media = Media::new();
    let good = video(&media);
    let output = run(&["classify", &good, "--server", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("127.0.0.1:1"), "{}", text(&output.stderr));

    let model = media.write("model.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}         ");
    for model in [model.as_path(), Path::new("missing.safetensors")] {
        let output = run(&["classify", &good, "--model", model.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(model.to_str().unwrap()), "{}", text(&output.stderr));
    }
}

#[test]
fn a_gpu_that_was_asked_for_and_is_not_there_is_an_error_in_one_line() {
    let bench = |device: &str| {
        // Of GPUs that are there none is to be seen.
        let args = ["bench", "model", "--depth", "10", "--batch", "1", "--seconds", "0", "--device", device];
        kinetoscope().args(args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    for device in ["cuda", "cuda:0"] {
        let output = bench(device);
        let message = text(&output.stderr);
        let expected = if cfg!(feature = "cuda") { "no GPU can be used: " } else { "--features cuda" };
        assert!(output.status.code() == Some(1) && message.contains(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let output = bench("gpu");
    assert!(text(&output.stderr).contains("expected cpu, cuda or cuda:N"), "{}", text(&output.stderr));
}

#[test]
fn the_program_describes_itself() {
    let version = run(&["--version"]);
    let version = text(&version.stdout);
    assert!(
        version.starts_with("kinetoscope ") && version.contains("commit: ") && version.contains("video"),
        "{version}"
    );
    for shell in ["bash", "fish", "zsh"] {
        let completions = run(&["completions", shell]);
        assert!(completions.status.success() && text(&completions.stdout).contains("max-connection-age"), "{shell}");
    }
    let media = Media::new();
    assert!(run(&["man", media.path("man").to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(media.path("man/kinetoscope-serve.1")).unwrap();
    assert!(page.contains("max\\-connection\\-age"), "{page}");
    assert!(!media.path("man/kinetoscope-decode-worker.1").exists(), "what is hidden has none");
}

#[test]
fn inspect_tells_model_files_and_checkpoints_apart() {
    let builtin: Value = serde_json::from_slice(&run(&["inspect", "--json"]).stdout).unwrap();
    assert_eq!((&builtin["kind"], &builtin["trained"]), (&"model".into(), &true.into()));
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/authors-2018.pth");
    let checkpoint: Value = serde_json::from_slice(&run(&["inspect", "--json", checkpoint]).stdout).unwrap();
    assert_eq!(checkpoint["kind"], "checkpoint");
}

#[test]
fn convert_makes_a_file_that_classify_takes() {
    let media = Media::new();
    let labels = media.write("labels.txt", b"abseiling\nbowling\nclapping\ndiving\n");
    let model = media.path("model.safetensors");
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/authors-2018.pth");
    let (labels, model) = (labels.to_str().unwrap(), model.to_str().unwrap());
    let converted = run(&["convert", checkpoint, model, "--labels", labels, "--preprocessing", "2018"]);
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    let output = run(&["classify", &video(&media), "--model", model, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["labels"].as_array().unwrap().len(), 4);
}

#[test]
fn an_interrupted_batch_goes_on_with_nothing_done_twice_or_missed() {
    let media = Media::new();
    let serving = Serving::start();
    let small = video(&media);
    // Over a mebibyte, so it is streamed.
    let noise = "-f lavfi -i testsrc2=size=320x240:rate=25,noise=alls=60:allf=t -t 3 -pix_fmt yuv420p";
    let large = media.make("large.mkv", noise).to_str().unwrap().to_owned();
    assert!(std::fs::metadata(&large).unwrap().len() > 1 << 20);
    let list = media.write("list.txt", format!("{small}\n\n{large}\n").as_bytes());
    let output = media.path("answers.jsonl");
    let (list, output) = (list.to_str().unwrap(), output.to_str().unwrap());
    let classify =
        |args: &[&str]| run(&[&["classify", "--server", serving.address.as_str(), "--output", output], args].concat());
    let videos = || {
        let lines = std::fs::read_to_string(output).unwrap();
        let video = |line: &str| serde_json::from_str::<Value>(line).unwrap()["video"].as_str().unwrap().to_owned();
        lines.lines().map(video).collect::<Vec<_>>()
    };

    assert!(classify(&[&small]).status.success());
    assert_eq!(videos(), [small.as_str()]);
    let again = classify(&["--from", list]);
    assert!(!again.status.success() && text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    // A line that was cut off when the machine went down.
    let whole = std::fs::read_to_string(output).unwrap();
    std::fs::write(output, whole + "{\"video\": \"lar").unwrap();
    let resumed = classify(&["--from", list, "--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(videos(), [small.as_str(), large.as_str()]);
}

#[test]
fn a_load_is_measured_in_both_loops() {
    let media = Media::new();
    let serving = Serving::start();
    let video = video(&media);
    for arrivals in [["--concurrency", "2"], ["--rate", "10"]] {
        let args = ["bench", "serve", &video, "--server", &serving.address, "--duration", "500ms", "--json"];
        let output = run(&[&args[..], &arrivals[..]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["requests"].as_u64().unwrap() >= 2, "{report}");
        assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["p50"].as_f64(), "{report}");
        let (videos, clips) =
            (report["videos_per_second"].as_f64().unwrap(), report["clips_per_second"].as_f64().unwrap());
        assert!((clips / videos - 3.0).abs() < 1e-9, "each video has three clips: {report}");
        assert_eq!(report["errors"], serde_json::json!({}));
    }
}

#[test]
fn a_load_tells_what_the_servers_processors_did() {
    let media = Media::new();
    let serving = Serving::start();
    let metrics = format!("http://{}/metrics", serving.http_address);
    let (video, server) = (video(&media), ["--server", &serving.address, "--metrics", &metrics, "--json"]);
    let output = run(&[&["bench", "serve", &video, "--duration", "2s"], &server[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used = |part: &str| report["processors"][part].as_f64().unwrap();
    assert!(used("decode") > 0.0 && used("model") > 0.0 && used("rest") >= 0.0, "{report}");

    let nowhere = format!("http://{}/nowhere", serving.http_address);
    let output = run(&["bench", "serve", &video, "--server", &serving.address, "--metrics", &nowhere]);
    assert!(!output.status.success() && text(&output.stderr).contains("404"), "{}", text(&output.stderr));
}

#[cfg(feature = "otlp")]
#[tokio::test]
async fn a_call_becomes_a_trace_with_its_stages_below_the_callers_span() {
    use kinetoscope::proto::video_classification_service_client::VideoClassificationServiceClient;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};

    struct Collector(tokio::sync::mpsc::UnboundedSender<ExportTraceServiceRequest>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            self.0.send(request.into_inner()).expect("the test takes all");
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        }
    }

    let (sender, mut exports) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let service = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(service.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)));

    let media = Media::new();
    let video = std::fs::read(video(&media)).unwrap();
    let serving = tokio::task::spawn_blocking(move || Serving::with(&["--otlp", &collector])).await.unwrap();
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let mut request = tonic::Request::new(crate::support::request(video));
    request.metadata_mut().insert("traceparent", format!("00-{trace}-{caller}-01").parse().unwrap());
    let server = format!("http://{}", serving.address);
    let mut client = VideoClassificationServiceClient::connect(server).await.unwrap();
    client.classify_video(request).await.unwrap();
    // What is left is sent when the server stops.
    drop(client);
    assert!(tokio::task::spawn_blocking(move || serving.terminate()).await.unwrap().success());

    let mut spans = Vec::new();
    while let Ok(export) = exports.try_recv() {
        let of = export.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        spans.extend(of.flat_map(|scope| scope.spans));
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let call = spans.iter().find(|span| span.name.ends_with("/ClassifyVideo")).expect("the call is a span");
    assert_eq!((hex(&call.trace_id).as_str(), hex(&call.parent_span_id).as_str()), (trace, caller));
    for stage in ["decode_wait", "decode", "model"] {
        let span = spans.iter().find(|span| span.name == stage).unwrap_or_else(|| panic!("{stage}: {spans:?}"));
        assert_eq!((&span.trace_id, &span.parent_span_id), (&call.trace_id, &call.span_id), "{stage}");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano, "{stage}");
    }
}

#[test]
fn uris_are_read_by_the_server_and_files_by_the_client() {
    let media = Media::new();
    let video = video(&media);
    let root = format!("file://{}/", Path::new(&video).parent().unwrap().display());
    let serving = Serving::with(&["--allow-uri", &root]);
    let uri = format!("{root}video.mp4");
    let output = run(&["classify", &video, &uri, "--server", &serving.address, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&answers[0]["video"], &answers[1]["video"]), (&video.as_str().into(), &uri.as_str().into()));
    assert_eq!(answers[0]["labels"], answers[1]["labels"]);

    let elsewhere = run(&["classify", "file:///etc/passwd", "--server", &serving.address]);
    assert!(!elsewhere.status.success() && text(&elsewhere.stderr).contains("URI_NOT_ALLOWED"));
    let nowhere = run(&["classify", &uri]);
    assert!(!nowhere.status.success() && text(&nowhere.stderr).contains("--server"), "{}", text(&nowhere.stderr));
}

#[cfg(feature = "object-store")]
#[tokio::test]
async fn locked_in_decoders_get_what_comes_over_tls() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=320x240:rate=25,noise=alls=60:allf=t -t 4 -c:v mpeg4 -q:v 5";
    let video = media.make("video.mp4", args);
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let roots = media.write("roots.pem", certificate.cert.pem().as_bytes());
    let port = crate::web::start_tls([("video.mp4", std::fs::read(&video).unwrap())], &certificate).await;
    let prefix = format!("https://localhost:{port}/");
    let uri = format!("{prefix}clips/video.mp4");
    let classify = move |variables: &[(&str, &str)]| {
        let serving = Serving::with_variables(&["--allow-uri", &prefix, "--allow-private-addresses"], variables);
        run(&["classify", &uri, "--server", &serving.address, "--json", "--retries", "0"])
    };
    let (trusting, doubting) =
        tokio::task::spawn_blocking(move || (classify(&[("SSL_CERT_FILE", roots.to_str().unwrap())]), classify(&[])))
            .await
            .unwrap();
    assert!(trusting.status.success(), "{}", text(&trusting.stderr));
    let answer: Value = serde_json::from_slice(&trusting.stdout).unwrap();
    assert_eq!((&answer["frames"], &answer["partial"]), (&100.into(), &false.into()));
    assert!(text(&doubting.stderr).contains("SOURCE_UNAVAILABLE"), "{}", text(&doubting.stderr));
}

#[test]
fn settings_are_checked_without_serving() {
    let media = Media::new();
    let check = |text: &str| {
        let file = media.write("kinetoscope.toml", text.as_bytes());
        let output = run(&["serve", "--check", "--config", file.to_str().unwrap()]);
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(check("max_batch = 4\nmax_delay = \"5ms\"\n"), (true, "the configuration is valid\n".to_owned()));
    for (text, hint) in [
        ("max_bach = 4", "did you mean \"max_batch\""),
        ("max_batch = 0", "--max-batch"),
        ("model = \"/nowhere.safetensors\"", "/nowhere.safetensors"),
        ("tokens = \"/nowhere\"", "/nowhere"),
        ("tls_key = \"/nowhere\"", "--tls-certificate"),
        ("allow_uri = [\"/srv/videos\"]", "file://"),
        ("allow_uri = [\"file:///no/where/\"]", "file:///no/where/"),
    ] {
        let (valid, message) = check(text);
        assert!(!valid && message.contains(hint), "{text}: {message}");
    }
}
