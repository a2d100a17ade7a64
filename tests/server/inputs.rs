//! What `classify` takes besides files with plain names: pipes, directories, lists, names that are no text; and its limits.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::cli::{Serving, kinetoscope, run, text};
use crate::media::Media;

/// Two seconds of a transport stream, any number of which make a longer one.
const STREAM: &str =
    "-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 50 -c:v mpeg2video -pix_fmt yuv420p -f mpegts";

fn stream(media: &Media) -> Vec<u8> {
    std::fs::read(media.make("stream.ts", STREAM)).unwrap()
}

fn spawn(args: &[&str]) -> Child {
    kinetoscope().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs the program with `input` on its standard input.
fn run_on(input: &[u8], args: &[&str]) -> Output {
    let mut child = spawn(args);
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An answer without the name of its video.
fn nameless(output: &Output) -> Value {
    let mut answer = answer(output);
    answer.as_object_mut().unwrap().remove("video").unwrap();
    answer
}

#[test]
fn what_comes_through_a_pipe_is_answered_as_its_file_is() {
    let media = Media::new();
    let serving = Serving::start();
    let size = "-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 40 -pix_fmt yuv420p";
    // The index of the second comes last.
    for (name, more) in [("a.mkv", ""), ("b.mp4", ""), ("c.ts", "-c:v mpeg2video")] {
        let path = media.make(name, &format!("{size} {more}"));
        let expected = nameless(&run(&["classify", path.to_str().unwrap(), "--json"]));
        let bytes = std::fs::read(&path).unwrap();
        for server in [None, Some(serving.address.as_str())] {
            let more: Vec<&str> = server.into_iter().flat_map(|server| ["--server", server]).collect();
            for input in ["-", "/dev/stdin"] {
                let piped = run_on(&bytes, &[&["classify", input, "--json"], more.as_slice()].concat());
                assert_eq!(nameless(&piped), expected, "{name} as {input} {server:?}");
            }
        }
    }
}

#[test]
fn a_fifo_and_a_redirected_file_are_read_as_pipes_are() {
    let media = Media::new();
    let path = media.make("a.ts", STREAM);
    let expected = nameless(&run(&["classify", path.to_str().unwrap(), "--json"]));
    let fifo = media.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let child = spawn(&["classify", fifo.to_str().unwrap(), "--json"]);
    std::fs::copy(&path, &fifo).unwrap();
    assert_eq!(nameless(&child.wait_with_output().unwrap()), expected);

    let redirected =
        kinetoscope().args(["classify", "-", "--json"]).stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
    assert_eq!(nameless(&redirected), expected);
    let substituted = Command::new("bash")
        .args(["-c", "\"$0\" classify <(cat \"$1\") --json", env!("CARGO_BIN_EXE_kinetoscope")])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(nameless(&substituted), expected);
}

/// Writes `part` again and again until nobody reads it; gives the bytes that were taken.
fn write_endlessly(mut to: impl Write, part: &[u8]) -> usize {
    let mut taken = 0;
    loop {
        match to.write(part) {
            Ok(n) => taken += n,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
                return taken;
            }
        }
    }
}

#[test]
fn an_endless_stream_is_answered_when_enough_clips_are_there() {
    let media = Media::new();
    let stream = stream(&media);
    let serving = Serving::start();
    // A server keeps what comes until it has its clips, however fast that is.
    for (server, most) in [(None, 64 << 20), (Some(serving.address.as_str()), 256 << 20)] {
        let server: Vec<&str> = server.into_iter().flat_map(|server| ["--server", server]).collect();
        let mut child = spawn(&[&["classify", "-", "--json", "--max-clips", "2"], server.as_slice()].concat());
        let stdin = child.stdin.take().unwrap();
        let taken = write_endlessly(stdin, &stream);
        let answer = answer(&child.wait_with_output().unwrap());
        assert_eq!((&answer["clips"], &answer["partial"]), (&2.into(), &false.into()), "{server:?}");
        assert!(taken < most, "{taken} bytes were read for two clips, {server:?}");
    }
}

#[test]
fn a_stream_that_stays_open_is_answered_too() {
    let media = Media::new();
    let stream = stream(&media);
    let mut child = spawn(&["classify", "-", "--json", "--max-clips", "1"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&stream).unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success());
    drop(stdin);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["clips"], 1);
}

#[test]
fn a_pipe_has_the_limits_that_a_file_has() {
    let media = Media::new();
    let stream = stream(&media);
    let mut child = spawn(&["classify", "-", "--max-video-bytes", "1MiB"]);
    write_endlessly(child.stdin.take().unwrap(), &stream);
    let refused = child.wait_with_output().unwrap();
    let message = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && message.contains("the limit is 1048576"), "{message}");

    let nonsense = run_on(&[0; 100_000], &["classify", "-"]);
    assert!(text(&nonsense.stderr).contains("not a video"), "{}", text(&nonsense.stderr));
    let nothing = run_on(b"", &["classify", "-"]);
    assert!(text(&nothing.stderr).contains("empty (0 bytes)"), "{}", text(&nothing.stderr));
    let twice = run_on(b"", &["classify", "-", "-"]);
    assert!(text(&twice.stderr).contains("once"), "{}", text(&twice.stderr));
}

fn videos(output: &Output) -> Vec<String> {
    let lines = text(&output.stdout).lines();
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["video"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_directory_is_an_error_that_says_what_to_do_or_is_walked() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 16 -pix_fmt yuv420p";
    std::fs::create_dir_all(media.path("in/below")).unwrap();
    let expected = [media.make("in/a.mkv", args), media.make("in/below/b.MP4", &format!("{args} -f mp4"))];
    media.write("in/notes.txt", b"no video");
    let (directory, serving) = (media.path("in"), Serving::start());
    for server in [None, Some(serving.address.as_str())] {
        let server: Vec<&str> = server.into_iter().flat_map(|server| ["--server", server]).collect();
        let classify = |more: &[&str]| {
            run(&[&["classify", directory.to_str().unwrap(), "--json"], more, server.as_slice()].concat())
        };
        let refused = classify(&[]);
        assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--recursive"), "{refused:?}");
        let walked = classify(&["--recursive"]);
        assert!(walked.status.success(), "{}", text(&walked.stderr));
        assert_eq!(videos(&walked), expected.each_ref().map(|path| path.to_str().unwrap()));
    }
}

#[test]
fn names_that_are_no_text_are_kept_apart() {
    let media = Media::new();
    let made = media.make("a.mkv", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 16 -pix_fmt yuv420p");
    let odd = |byte: u8| media.path("").join(OsString::from_vec([b"odd ", &[byte][..], b".mkv"].concat()));
    let paths: [PathBuf; 2] = [odd(0xfe), odd(0xff)];
    for path in &paths {
        std::fs::copy(&made, path).unwrap();
    }
    let missing = media.path("missing.mkv");
    let lines = [paths[0].as_os_str(), paths[1].as_os_str(), missing.as_os_str()].map(OsStr::as_bytes);
    let list = media.write("list.txt", &lines.join(&b'\n'));
    let (list, output) = (list.to_str().unwrap(), media.path("out.jsonl"));
    let output = output.to_str().unwrap();
    let done = || {
        let lines = std::fs::read_to_string(output).unwrap();
        let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut names: Vec<String> = values
            .map(|value| {
                assert_eq!(value["video_escaped"], true);
                value["video"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
            })
            .collect();
        names.sort();
        names
    };

    let first = kinetoscope().arg("classify").arg(&paths[0]).args(["--output", output]).output().unwrap();
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(done(), [r"odd \xfe.mkv"]);
    let rest = run(&["classify", "--from", list, "--output", output, "--resume"]);
    let message = text(&rest.stderr);
    assert!(message.contains("1 of 3 videos were done before"), "{message}");
    assert!(message.contains("list.txt, line 3: ") && message.contains("missing.mkv"), "{message}");
    assert_eq!(done(), [r"odd \xfe.mkv", r"odd \xff.mkv"], "each has its own answer");

    let broken = media.write("broken.txt", b"a.mkv\nb\0.mkv\n");
    let refused = run(&["classify", "--from", broken.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("broken.txt, line 2: "), "{}", text(&refused.stderr));
}

#[test]
fn files_of_this_machine_have_the_limits_that_their_user_sets() {
    let media = Media::new();
    // What an action camera films; a server takes less by default.
    let large = media.make("large.mkv", "-f lavfi -i color=gray:size=4000x3000:rate=30 -frames:v 16 -c:v mpeg4");
    let large = large.to_str().unwrap();
    let local = answer(&run(&["classify", large, "--json"]));
    assert_eq!((&local["width"], &local["height"], &local["frames"]), (&4000.into(), &3000.into(), &16.into()));
    for (flag, value, expected) in [
        ("--max-pixels", "3999x3000", "the limit is 11997000 pixels"),
        ("--max-frames", "15", "more than 15 frames"),
        ("--max-duration", "400ms", "the limit is 400ms"),
        ("--max-video-bytes", "1KB", "the limit is 1000"),
    ] {
        let refused = run(&["classify", large, flag, value]);
        let message = text(&refused.stderr);
        assert!(refused.status.code() == Some(1) && message.contains(expected), "{flag}: {message}");
    }
    let usual = Serving::start();
    let refused = run(&["classify", large, "--server", &usual.address]);
    assert!(text(&refused.stderr).contains("TOO_MANY_PIXELS"), "{}", text(&refused.stderr));
    let generous = Serving::with(&["--max-pixels", "4000x3000"]);
    assert_eq!(answer(&run(&["classify", large, "--server", &generous.address, "--json"])), local);
    let both = run(&["classify", large, "--server", &generous.address, "--max-pixels", "100"]);
    assert!(both.status.code() == Some(2) && text(&both.stderr).contains("--max-pixels"), "{both:?}");
}

#[test]
fn times_are_given_as_players_show_them() {
    let media = Media::new();
    let path = media.make("a.mp4", "-f lavfi -i testsrc2=size=64x48:rate=25 -t 4 -pix_fmt yuv420p");
    let frames =
        |start: &str| answer(&run(&["classify", path.to_str().unwrap(), "--json", "--start", start]))["frames"].clone();
    for start in ["0:03", "3", "3s"] {
        assert_eq!(frames(start), 25, "{start}");
    }
    let wrong = run(&["classify", path.to_str().unwrap(), "--start", "1:99"]);
    assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("1:23:45"), "{}", text(&wrong.stderr));
}

#[test]
fn a_reader_that_leaves_ends_the_program_in_silence() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/camera-motion/model.safetensors");
    for args in [&["inspect", model.to_str().unwrap(), "--tensors"][..], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = kinetoscope().args(args).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    let media = Media::new();
    let path = media.make("a.mkv", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 16 -pix_fmt yuv420p");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let path = path.to_str().unwrap();
    let classify = ["classify", "--device", "cpu", path, path, path];
    let output = kinetoscope().args(classify).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    // Nor does it matter whether anybody reads what goes wrong.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = kinetoscope().args(["classify", "missing.mp4", path]).stderr(writer).output().unwrap();
    assert!(output.status.code() == Some(1) && text(&output.stdout).contains("16 frames"), "{output:?}");
}

#[test]
fn a_variable_that_names_a_server_is_told_of_and_gives_way_to_arguments() {
    let media = Media::new();
    let path = media.make("a.mkv", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 16 -pix_fmt yuv420p");
    let path = path.to_str().unwrap();
    let serving = Serving::start();
    let with = |variables: &[(&str, &str)], args: &[&str]| {
        let args = [&["--device", "cpu"], args].concat();
        let output =
            kinetoscope().arg("classify").arg(path).args(args).envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), text(&output.stderr).to_owned())
    };
    let server = ("KINETOSCOPE_SERVER", serving.address.as_str());
    let (success, told) = with(&[server], &[]);
    let expected = format!("kinetoscope: asking the server {}, which KINETOSCOPE_SERVER names\n", serving.address);
    assert!(success && told == expected, "{told}");
    assert_eq!(with(&[("KINETOSCOPE_SERVER", "127.0.0.1:1")], &["--server", &serving.address]), (true, String::new()));
    assert_eq!(with(&[("KINETOSCOPE_SERVER", "")], &[]), (true, String::new()));
    // A model that is asked for by an argument runs here.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/camera-motion/model.safetensors");
    let model = model.to_str().unwrap();
    assert_eq!(with(&[("KINETOSCOPE_SERVER", "127.0.0.1:1")], &["--model", model]), (true, String::new()));
    assert_eq!(with(&[("KINETOSCOPE_MODEL", "/nowhere")], &["--server", &serving.address]), (true, String::new()));
    let (success, told) = with(&[], &["--server", &serving.address, "--model", model]);
    assert!(!success && told.contains("give one"), "{told}");
}

#[test]
fn empty_variables_are_absent_and_switches_take_the_usual_words() {
    let check = |name: &str, value: &str| {
        let output = kinetoscope().args(["serve", "--check"]).env(name, value).output().unwrap();
        (output.status.success(), text(&output.stderr).to_owned())
    };
    for name in
        ["LISTEN", "HTTP", "MODEL", "TOKENS", "MAX_BATCH", "ALLOW_URI", "MODEL_CONTROL", "CONFIG", "LOG", "LOG_FORMAT"]
    {
        assert_eq!(check(&format!("KINETOSCOPE_{name}"), ""), (true, String::new()), "{name}");
    }
    for word in ["1", "0", "yes", "no", "true", "false", "on", "off", "TRUE", "No"] {
        assert_eq!(check("KINETOSCOPE_MODEL_CONTROL", word), (true, String::new()), "{word}");
    }
    let (success, message) = check("KINETOSCOPE_MODEL_CONTROL", "maybe");
    assert!(!success && message.contains("KINETOSCOPE_MODEL_CONTROL"), "{message}");
    let (success, message) = check("KINETOSCOPE_MAX_BATCH", "many");
    assert!(!success && message.contains("KINETOSCOPE_MAX_BATCH"), "{message}");
}
