#!/usr/bin/env python3
"""Traces what decoding does to the outside; see check-isolation.sh.

For each file `kinetoscope classify` runs twice under strace, with and without isolation. It fails if

* anything but a Unix socket pair is connected, bound or made, or the canary port sees anybody;
* from the moment the video is first opened, the command opens, looks for or changes any other file;
* a decoder process makes any such call, even one that is denied, once it has locked itself in;
  left out of both are files that the C library reads for itself, in vain where it is locked in: tables of character
  sets (FFmpeg converts the names of an MPEG-TS file's programmes), the time zone (of a file's date), and how the kernel
  hands out memory (when a thread's heap shrinks);
* the outcome differs between isolated and not, or between the command and a server with either.

Baits that are made here are also given to the plain ffmpeg command, which shows that they work: it opens the canaries.
"""

import argparse
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

MODES = ["process", "none"]
# strace's own filter (--seccomp-bpf) is not used: what the sandbox denies would never reach it.
TRACE = ["strace", "-f", "-qq", "-s", "4096", "-e", "signal=none", "-e", "trace=%network,%file,seccomp"]
CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)$")
PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Canary:
    """A port on which nobody should call."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.calls = 0
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            connection, _ = self.socket.accept()
            self.calls += 1
            connection.close()


# ---- Baits ----


def box(name, content):
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_external_data(movie, target):
    """A QuickTime movie whose track says that its samples are in another file, by a Macintosh alias record."""
    path = str(target).encode()
    path += b"\0" * (len(path) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes([6]) + b"canary".ljust(63, b"\0") + bytes(16)
    record += bytes(4) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + b"\xff\xff\0\0"
    alias = box(b"dref", struct.pack(">II", 0, 1) + box(b"alis", bytes(4) + record))

    def rebuild(content):
        out, at = b"", 0
        while at + 8 <= len(content):
            size, name = struct.unpack(">I4s", content[at:at + 8])
            inner = content[at + 8:at + size]
            if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                out += box(name, rebuild(inner))
            else:
                out += alias if name == b"dref" else content[at:at + size]
            at += size
        return out

    # The index comes last, so its length moves nothing.
    return rebuild(movie)


def make_baits(directory, port):
    """Videos, and what FFmpeg could follow to `canary.ts` and to the port."""
    directory.mkdir()
    secret = directory.parent / "canary"
    secret.mkdir()
    canary = secret / "canary.ts"

    def make(path, *arguments):
        source = ["-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25", "-frames:v", "40", "-g", "10"]
        subprocess.run(["ffmpeg", "-loglevel", "quiet", "-nostdin", *source, *arguments, path], check=True)

    x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    make(canary, *x264)
    for name in ["video.mp4", "video.mov", "video.mkv", "video.ts", "video.flv"]:
        make(directory / name, *x264)
    make(directory / "video.avi", "-c:v", "mpeg4")
    make(directory / "video.webm", "-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8")
    make(directory / "video.mpg", "-c:v", "mpeg2video")
    whole = (directory / "video.ts").read_bytes()
    (directory / "truncated.ts").write_bytes(whole[:len(whole) // 2])
    movie = (directory / "video.mov").read_bytes()
    (directory / "cut-off.mov").write_bytes(movie[:len(movie) // 2])
    (directory / "empty.mp4").write_bytes(b"")
    (directory / "text.txt").write_text("No video at all.\n" * 50)
    subprocess.run(["ffmpeg", "-loglevel", "quiet", "-nostdin", "-f", "lavfi", "-i", "testsrc2=size=64x48", "-frames:v",
                    "1", directory / "image.png"], check=True)

    (directory / "bait-external-data.mov").write_bytes(with_external_data(movie, canary))
    for kind, target in [("file", str(canary)), ("http", f"http://127.0.0.1:{port}/canary.ts")]:
        (directory / f"bait-{kind}.ffconcat").write_text(f"ffconcat version 1.0\nfile '{target}'\n")
        (directory / f"bait-{kind}.m3u8").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n")
        (directory / f"bait-{kind}-key.m3u8").write_text(
            f'#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:2,\n{target}\n'
            "#EXT-X-ENDLIST\n")
        (directory / f"bait-{kind}.mpd").write_text(
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            '<AdaptationSet mimeType="video/mp4" contentType="video"><Representation id="1" bandwidth="100000" '
            f'width="160" height="120" codecs="avc1.42c00c"><BaseURL>{target}</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>\n")
    (directory / "bait.sdp").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=bait\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n")
    # The same text under a name that promises a video, as uploads have.
    (directory / "bait-playlist.mp4").write_bytes((directory / "bait-http.m3u8").read_bytes())
    (directory / "bait-concat.mp4").write_bytes((directory / "bait-file.ffconcat").read_bytes())
    return secret


# ---- Tracing ----


def calls(trace):
    """(process, name, arguments with the result) of each call, in the order in which they ended."""
    begun = {}
    for line in trace.read_text(errors="replace").splitlines():
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>")
            continue
        if "resumed>" in line:
            line = begun.pop(pid, "") + line.split("resumed>", 1)[1]
        if match := CALL.match(line):
            yield pid, match["name"], match["arguments"]
    # What never came back, such as the last call of a process that was killed.
    for line in begun.values():
        if match := CALL.match(line):
            yield match["pid"], match["name"], match["arguments"]


def is_harmless(name, arguments):
    """What talks to nobody but the other end of a socket pair."""
    if name == "socketpair":
        return "AF_UNIX" in arguments
    # Through a socket that is there already; an address would be another one.
    return name in ("recvfrom", "sendto", "recvmsg", "sendmsg", "getsockopt", "setsockopt", "shutdown",
                    "getsockname", "getpeername") and "sin_addr" not in arguments and "sun_path" not in arguments


NETWORK = {"socket", "connect", "bind", "listen", "accept", "accept4", "socketpair", "recvfrom", "sendto", "recvmsg",
           "sendmsg", "recvmmsg", "sendmmsg", "getsockopt", "setsockopt", "shutdown", "getsockname", "getpeername"}
# What starting a program reads: libraries, their settings, and what the kernel says of the machine.
SYSTEM = ("/lib", "/usr/lib", "/etc/", "/proc/", "/sys/", "/selinux", "/dev/null")
# Where the kernel says how much CPU time a decoder process has used.
WORKER = re.compile(r"^/proc/\d+/stat$")
DENIED = "= -1 EPERM (Operation not permitted)"
STARTING_A_WORKER = {("chdir", "/"), ("openat", "/dev/null")}
C_LIBRARY = re.compile(
    r"^(/usr)?/lib(64)?/([a-z0-9_-]+/)?gconv/|^/etc/localtime$|^/proc/sys/vm/overcommit_memory$")


class Findings:
    """What one traced run did beside decoding its video."""

    def __init__(self, trace, video, library_path):
        self.connections, self.files, self.locked_in = [], [], 0
        system = SYSTEM + tuple(path for path in library_path.split(":") if path)
        begun = False
        workers, sandboxed = set(), set()
        for pid, name, arguments in calls(trace):
            if name == "seccomp":
                if pid in workers and "SET_MODE_FILTER" in arguments:
                    sandboxed.add(pid)
                    self.locked_in += 1
                continue
            call = f"{name}({arguments}"
            if name in NETWORK:
                if not is_harmless(name, arguments):
                    self.connections.append(call)
                continue
            paths = PATH.findall(arguments)
            first = paths[0] if paths else ""
            begun |= first == str(video)
            # An empty path is that of a file which is open already.
            if not first and "AT_EMPTY_PATH" in arguments:
                continue
            if C_LIBRARY.match(first) and (pid not in sandboxed or arguments.endswith(DENIED)):
                continue
            if pid in sandboxed:
                self.files.append(f"locked in: {call}")
            elif name == "execve" and '"decode-worker"' in arguments:
                workers.add(pid)
                if not first.startswith("/proc/self/exe"):
                    self.files.append(call)
            elif pid in workers:
                # It does not know the video yet.
                if not first.startswith(system):
                    self.files.append(f"not locked in yet: {call}")
            elif begun and first != str(video) and (name, first) not in STARTING_A_WORKER and not WORKER.match(first):
                self.files.append(call)


def outcome(kinetoscope, video, *arguments):
    """What the command says of a video: without its name, and without the words that a server puts before an error."""
    command = [*kinetoscope, "classify", "--json", "--top-k", "3", *arguments, video]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        answer = json.loads(done.stdout)
        del answer["video"]
        return answer
    lines = [line for line in done.stderr.splitlines() if f"{video}: " in line]
    error = lines[-1].split(f"{video}: ", 1)[1] if lines else f"exit status {done.returncode}: {done.stderr[-500:]}"
    return re.sub(r"^[A-Z]\w+ \([A-Z_]+\): ", "", error)


def in_words(answer):
    if isinstance(answer, str):
        return f"error: {answer.split('; accepted are ')[0]}"
    best = answer["labels"][0]
    partial = f"; partial: {answer['partial_reason']}" if answer["partial"] else ""
    return f"{best['label']} {best['score']:.3f} ({answer['frames']} frames, {answer['clips']} clips){partial}"


class Server:
    """`kinetoscope serve` on a free port."""

    def __init__(self, kinetoscope, mode, log):
        self.log = log
        command = [kinetoscope, "--log-format", "json", "serve", "--listen", "127.0.0.1:0", "--decode-isolation", mode]
        self.process = subprocess.Popen(command, stderr=log.open("w"))
        while not (found := re.search(r'"address":"([^"]+)"', log.read_text())):
            if self.process.poll() is not None:
                sys.exit(f"the server did not start: {log.read_text()}")
        self.address = found[1]

    def stop(self):
        self.process.terminate()
        self.process.wait()


# ---- The check ----


def check(args, video, work, servers, canary):
    """A row of the table, and what is wrong."""
    answers, faults, connections, files = {}, [], 0, 0
    for mode in MODES:
        trace = work / "trace"
        before = canary.calls
        traced = [*TRACE, "-o", trace, args.kinetoscope]
        answers[f"classify, {mode}"] = outcome(traced, video, "--decode-isolation", mode)
        found = Findings(trace, video, os.environ.get("LD_LIBRARY_PATH", ""))
        calls_seen = canary.calls - before
        connections += len(found.connections) + calls_seen
        files += len(found.files)
        faults += [f"{mode}: {call}" for call in found.connections + found.files]
        if calls_seen:
            faults.append(f"{mode}: the canary port was called {calls_seen} times")
        # Empty files are refused before a process is started.
        if mode == "process" and not found.locked_in and video.stat().st_size > 0:
            faults.append("no decoder process locked itself in")
        if mode == "none" and found.locked_in:
            faults.append("there is a decoder process without isolation")
    for mode, server in servers.items():
        before = canary.calls
        answers[f"server, {mode}"] = outcome([args.kinetoscope], video, "--server", server.address)
        if canary.calls > before:
            connections += canary.calls - before
            faults.append(f"server, {mode}: the canary port was called")
    first, *others = answers.items()
    same = "yes"
    for way, answer in others:
        if answer != first[1]:
            same = "NO"
            faults.append(f"{way}: {in_words(answer)}; but {first[0]}: {in_words(first[1])}")
    return (in_words(first[1]), connections, files, same), faults


def bait_works(video, secret, canary, work):
    """What the plain ffmpeg command does with a bait."""
    trace, before = work / "trace", canary.calls
    command = [*TRACE, "-o", trace, "ffmpeg", "-loglevel", "quiet", "-nostdin"]
    if video.suffix == ".ffconcat" or "concat" in video.name:
        command += ["-f", "concat", "-safe", "0"]
    elif video.suffix == ".mov":
        command += ["-enable_drefs", "1", "-use_absolute_path", "1"]
    command += ["-protocol_whitelist", "file,http,tcp,udp,rtp,crypto,data", "-i", video, "-f", "null", "-"]
    try:
        subprocess.run(command, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        pass
    did = []
    if any(name.startswith("open") and str(secret) in arguments for _, name, arguments in calls(trace)):
        did.append("opens the canary file")
    if canary.calls > before:
        did.append("calls the canary port")
    elif any(name == "bind" and "sin_addr" in arguments for _, name, arguments in calls(trace)):
        did.append("opens a port")
    return " and ".join(did) or "nothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetoscope", type=Path, required=True, help="the binary")
    parser.add_argument("--no-baits", action="store_true", help="check only the videos that are given")
    parser.add_argument("videos", nargs="*", type=Path, help="videos, and directories of videos with all below them")
    args = parser.parse_args()
    args.kinetoscope = args.kinetoscope.resolve()
    videos = []
    for path in args.videos:
        videos += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    canary = Canary()
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if not args.no_baits:
            secret = make_baits(work / "baits", canary.port)
            baits = sorted((work / "baits").iterdir())
            print("| bait | the plain ffmpeg command |\n|---|---|")
            for bait in baits:
                if bait.name.startswith("bait"):
                    print(f"| {bait.name} | {bait_works(bait, secret, canary, work)} |", flush=True)
            print()
            videos = baits + videos
        servers = {mode: Server(args.kinetoscope, mode, work / f"server-{mode}.log") for mode in MODES}
        try:
            print("| video | outcome | connections | other files | same in all four |\n|---|---|---|---|---|")
            for video in videos:
                row, wrong = check(args, video.resolve(), work, servers, canary)
                print(f"| {video.parent.name}/{video.name} | " + " | ".join(map(str, row)) + " |", flush=True)
                faults += [f"{video}: {fault}" for fault in wrong]
        finally:
            for server in servers.values():
                server.stop()
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"\n{len(videos)} videos, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
