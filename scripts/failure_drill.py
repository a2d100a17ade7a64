#!/usr/bin/env python3
"""Breaks replicas behind a load balancer in several ways, under load, and counts what becomes of each call; see
failure-drill.sh.

Four kinds of load go on all the time: `ClassifyVideo` at a constant rate, `ClassifyVideoStream` with uploads that exceed
what a server keeps in memory, one long `ClassifyVideos`, and `kinetoscope classify` as the batch job runs it. Each call has a
key of its own, which goes through the server and comes back. An answer is right if it is that of `kinetoscope classify`
without a server. Latencies count from when a call should have been sent.
"""

import argparse
import collections
import datetime
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kinetoscope.v1 import kinetoscope_pb2 as api
from kinetoscope.v1 import kinetoscope_pb2_grpc as services

# As docs/deploying.md has it.
SERVICE_CONFIG = """
    {"loadBalancingConfig": [{"round_robin": {}}],
     "methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s",
                       "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}
"""
LIMITS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# gRPC repeats only what it has kept: 256 KiB of a call unless told otherwise.
WITH_RETRIES = [*LIMITS, ("grpc.service_config", SERVICE_CONFIG), ("grpc.per_rpc_retry_buffer_size", 65 << 20)]
# gRPC repeats no stream that has begun to be answered, and grpcio may crash when it tries (grpc/grpc#40283).
WITHOUT_RETRIES = [*LIMITS, ("grpc.enable_retries", 0)]
# A call that is refused with a RetryInfo is sent again so often, as `kinetoscope classify` does it.
RETRIES = 8
DEADLINE_SECONDS = 60
# What a stream ends with when its server or the balancer dies. An error of the server itself has details.
CUT_OFF = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
# Uploads take two seconds, so that some are on their way whenever a replica dies.
CHUNKS = 20
CHUNK_SECONDS = 0.1
# nginx waits so long for a server.
BALANCER_TIMEOUT_SECONDS = 5

SOURCES = {
    "still": "testsrc2=size=160x120:rate=25,select='eq(n,0)',loop=-1:1,setpts=N/25/TB",
    "numbers": "testsrc2=size=160x120:rate=25",
    "zoom": "mandelbrot=size=160x120:rate=25",
    "pan-right": "mandelbrot=size=160x120:rate=25,scroll=h=0.02",
    "pan-left": "testsrc2=size=160x120:rate=25,scroll=h=-0.03",
    "tilt": "testsrc2=size=160x120:rate=25,scroll=v=0.03",
    "roll": "testsrc2=size=160x120:rate=25,rotate=0.05*n",
}


def make_videos(directory):
    """Small videos, the last of which exceeds what gRPC keeps for a retry unless told otherwise (256 KiB); longer ones for
    the batch; and one for uploads."""
    def make(name, source, *codec, frames=16):
        path = directory / f"{name}.mp4"
        subprocess.run(["ffmpeg", "-loglevel", "error", "-nostdin", "-f", "lavfi", "-i", source, "-frames:v", str(frames),
                        *codec, path], check=True)
        return path

    small = [make(name, source, "-pix_fmt", "yuv420p") for name, source in SOURCES.items()]
    long = [make(f"{name}-long", source, "-pix_fmt", "yuv420p", frames=96) for name, source in SOURCES.items()]
    noise = "testsrc2=size={}:rate=25,noise=alls=100:allf=t"
    medium = make("medium", noise.format("320x240"), "-c:v", "mpeg4", "-q:v", "1")
    large = make("large", noise.format("400x300"), "-c:v", "mpeg4", "-q:v", "1")
    assert medium.stat().st_size > 256 * 1024 and large.stat().st_size > 1024 * 1024
    return [*small, medium], long, large


def offline_answers(kinetoscope, videos):
    command = [kinetoscope, "classify", "--json", *videos]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    answers = {Path(answer["video"]): answer["labels"] for answer in map(json.loads, lines)}
    # Otherwise an answer to another call could pass for the right one.
    scores = sorted(labels[0]["score"] for labels in answers.values())
    assert all(b - a > 1e-4 for a, b in zip(scores, scores[1:])), f"the videos' answers are alike: {scores}"
    return answers


def is_right(labels, expected):
    """Whether labels, as (label, score), are those of the command line."""
    return len(labels) == len(expected) and all(
        label == other["label"] and abs(score - other["score"]) < 1e-5 for (label, score), other in zip(labels, expected))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


# ---- Servers ----


class Replica:
    """`kinetoscope serve` on a port that it keeps over restarts."""

    def __init__(self, number, kinetoscope, work):
        self.number, self.kinetoscope = number, kinetoscope
        self.address = f"127.0.0.1:{free_port()}"
        self.log = work / f"replica-{number}.jsonl"
        self.spool = work / f"spool-{number}"
        self.spool.mkdir()
        self.wrapper, self.environment = [], {}

    def start(self):
        command = [*self.wrapper, self.kinetoscope, "serve", "--listen", self.address, "--threads", "1",
                   "--log-format", "json", "--spool", self.spool, "--grace", "10s"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | self.environment)
        wait_until_healthy(self.kinetoscope, self.address)

    def stop(self):
        """SIGTERM; gives the seconds that draining took."""
        begun = time.monotonic()
        self.process.terminate()
        if self.process.wait(timeout=60) != 0:
            print(f"replica {self.number} ended with status {self.process.returncode}", file=sys.stderr)
        return time.monotonic() - begun

    def kill(self):
        self.process.kill()
        self.process.wait()

    def send(self, number):
        self.process.send_signal(number)

    def log_lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]


def wait_until_healthy(kinetoscope, address):
    for _ in range(100):
        if subprocess.run([kinetoscope, "health", "--server", address], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    sys.exit(f"{address} does not become healthy")


def with_small_disk(replica):
    """Gives it a file system of its own for uploads, in a mount namespace that ends with the process. False if there is
    no right to make one."""
    for unshare in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        wrapper = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=32m none "$0" && exec "$@"', replica.spool]
        if subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0:
            replica.wrapper = wrapper
            return True
    return False


class Clock:
    """The wall clock of processes under libfaketime, by a file that says by how many seconds it is off."""

    def __init__(self, library, work):
        self.file = work / "clock"
        self.set("+0")
        # As when a real clock is set: the monotonic one goes on.
        self.environment = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(self.file),
                            "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def set(self, seconds):
        self.file.write_text(seconds)

    def what_is_faked(self):
        """Tried with a process that does nothing else."""
        names = ["CLOCK_REALTIME", "CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME"]
        read = f"import time; print(*(time.clock_gettime(getattr(time, name)) for name in {names}))"
        self.set("+3600")
        run = subprocess.run([sys.executable, "-c", read], env=os.environ | self.environment, check=True,
                             capture_output=True, text=True)
        self.set("+0")
        off = {name: round(float(seen) - time.clock_gettime(getattr(time, name)))
               for name, seen in zip(names, run.stdout.split(), strict=True)}
        return ", ".join(f"{name} {seconds:+} s" if seconds else f"{name} left alone" for name, seconds in off.items())


NGINX = """
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/nginx-errors.log;
events {{ worker_connections 1024; }}
http {{
    log_format calls '$http_x_request_id $status $upstream_addr';
    access_log {work}/calls.log calls;
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-fastcgi;
    uwsgi_temp_path {work}/nginx-uwsgi;
    scgi_temp_path {work}/nginx-scgi;

    upstream kinetoscope {{
        {servers}
        keepalive 32;
    }}
    server {{
        listen {address} http2;
        client_max_body_size 0;
        location / {{
            grpc_pass grpc://kinetoscope;
            grpc_connect_timeout 1s;
            grpc_send_timeout {timeout}s;
            grpc_read_timeout {timeout}s;
            grpc_next_upstream error timeout;
            error_page 502 504 = @unavailable;
        }}
        # gRPC's own retries want an answer in gRPC's form.
        location @unavailable {{
            default_type application/grpc;
            add_header grpc-status 14;
            return 200 "";
        }}
    }}
}}
"""


class Balancer:
    def __init__(self, nginx, kinetoscope, replicas, work):
        self.address = f"127.0.0.1:{free_port()}"
        self.calls, self.errors = work / "calls.log", work / "nginx-errors.log"
        servers = [f"server {replica.address} max_fails=1 fail_timeout=5s;" for replica in replicas]
        config = work / "nginx.conf"
        config.write_text(NGINX.format(work=work, servers="\n        ".join(servers), address=self.address,
                                       timeout=BALANCER_TIMEOUT_SECONDS))
        self.process = subprocess.Popen([nginx, "-p", work, "-c", config, "-e", self.errors], stderr=subprocess.DEVNULL)
        wait_until_healthy(kinetoscope, self.address)

    def tries(self):
        """Of each key: how often it came, and how often nginx offered it to a second replica."""
        came, passed_on = collections.Counter(), collections.Counter()
        for line in self.calls.read_text().splitlines():
            key, _, upstreams = line.split(" ", 2)
            came[key] += 1
            passed_on[key] += upstreams.count(",")
        return came, passed_on


# ---- Load ----


@dataclass
class Call:
    key: str
    kind: str
    phase: str
    video: Path
    due: float
    # Whether each answer is right.
    answers: list = field(default_factory=list)
    ended: float = 0.0
    # The error that reached the caller for good.
    error: str = ""
    # Sent again by this client; what gRPC sends again by itself is seen by nginx only.
    sent_again: int = 0


class Load:
    """Sends calls at constant rates until it is stopped, and keeps what became of them."""

    def __init__(self, address, videos, large, expected):
        self.videos, self.large, self.expected = videos, large, expected
        self.contents = {path: path.read_bytes() for path in [*videos, large]}
        self.client = services.VideoClassificationServiceStub(grpc.insecure_channel(address, options=WITH_RETRIES))
        self.streams = services.VideoClassificationServiceStub(grpc.insecure_channel(address, options=WITHOUT_RETRIES))
        self.phase = "steady"
        self.calls = []
        self.cuts = collections.Counter()
        self.stopping = threading.Event()
        self.threads = []

    def start(self, rates):
        ways = {"ClassifyVideo": self.classify_video, "ClassifyVideoStream": self.classify_upload}
        for kind, way in ways.items():
            self.start_thread(self.keep_calling, kind, rates[kind], way)
        self.start_thread(self.keep_streaming, rates["ClassifyVideos"])

    def start_thread(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def stop(self):
        """Gives what is on its way the time to end; what does not is lost."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=DEADLINE_SECONDS)

    def new_calls(self, kind, rate):
        begun = time.monotonic()
        number = 0
        while not self.stopping.wait(max(0, begun + number / rate - time.monotonic())):
            video = self.large if kind == "ClassifyVideoStream" else self.videos[number % len(self.videos)]
            call = Call(f"{kind}-{number}", kind, self.phase, video, begun + number / rate)
            self.calls.append(call)
            yield call
            number += 1

    def take(self, call, answer):
        labels = [(label.label, label.score) for label in answer.labels]
        call.answers.append(not answer.partial and is_right(labels, self.expected[call.video]))
        call.ended = time.monotonic()

    def keep_calling(self, kind, rate, way):
        with ThreadPoolExecutor(128) as pool:
            for call in self.new_calls(kind, rate):
                pool.submit(self.call, call, way)

    def call(self, call, way):
        for tries in range(RETRIES + 1):
            try:
                return way(call)
            except grpc.RpcError as error:
                pause = pause_before_retry(error, tries, is_stream=call.kind == "ClassifyVideoStream")
                if pause is None or tries == RETRIES:
                    call.error = f"{error.code().name} ({error.details()})"
                    return
            call.sent_again += 1
            time.sleep(pause)

    def classify_video(self, call):
        request = api.ClassifyVideoRequest(video=api.Video(content=self.contents[call.video]))
        metadata = [("x-request-id", call.key)]
        response, rpc = self.client.ClassifyVideo.with_call(request, timeout=DEADLINE_SECONDS, metadata=metadata)
        self.take(call, response.classification)
        call.answers[-1] &= dict(rpc.initial_metadata())["x-request-id"] == call.key

    def classify_upload(self, call):
        content = self.contents[call.video]

        def chunks():
            size = -(-len(content) // CHUNKS)
            for at in range(0, len(content), size):
                yield api.ClassifyVideoStreamRequest(chunk=content[at:at + size])
                time.sleep(CHUNK_SECONDS)

        metadata = [("x-request-id", call.key)]
        for event in self.streams.ClassifyVideoStream(chunks(), timeout=DEADLINE_SECONDS, metadata=metadata):
            if event.WhichOneof("event") == "classification":
                self.take(call, event.classification)

    def keep_streaming(self, rate):
        """One `ClassifyVideos`, and when it breaks off another one for what it left unanswered."""
        waiting, lock = {}, threading.Lock()
        sending = queue.SimpleQueue()

        def feed():
            for call in self.new_calls("ClassifyVideos", rate):
                with lock:
                    waiting[call.key] = call
                    sending.put(call)
            sending.put(None)

        def requests(sending):
            while call := sending.get():
                video = api.Video(content=self.contents[call.video])
                yield api.ClassifyVideosRequest(key=call.key, video=video)

        by_key = {}
        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        while True:
            try:
                for response in self.streams.ClassifyVideos(requests(sending)):
                    with lock:
                        call = waiting.pop(response.key, None) or by_key[response.key]
                        by_key[response.key] = call
                    if response.HasField("classification"):
                        self.take(call, response.classification)
                    else:
                        call.error = response.error.reason
                break
            except grpc.RpcError as error:
                self.cuts[self.phase, error.code().name] += 1
                with lock:
                    # Ends the generator of the call that broke off.
                    sending.put(None)
                    sending = queue.SimpleQueue()
                    for call in waiting.values():
                        call.sent_again += 1
                        sending.put(call)
                    if not feeder.is_alive():
                        sending.put(None)
                time.sleep(0.2)
        feeder.join()


def pause_before_retry(error, tries, is_stream):
    """Seconds to wait before a call is sent again, as docs/deploying.md has it; None if that is of no use."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    # Of other calls gRPC has repeated these by itself.
    was_cut_off = error.code() in CUT_OFF and status is None
    if is_stream and (error.code() == grpc.StatusCode.UNAVAILABLE or was_cut_off):
        return 0.2 * 2**tries
    return None


class Batch(threading.Thread):
    """`kinetoscope classify` over a list of videos, once more if it fails: twice, as the batch job says."""

    def __init__(self, kinetoscope, address, videos, large, count, work):
        super().__init__(daemon=True)
        folder = work / "batch"
        folder.mkdir()
        self.video_of = {}
        for number in range(count):
            video = large if number % 8 == 7 else videos[number % len(videos)]
            path = folder / f"{number}.mp4"
            path.symlink_to(video)
            self.video_of[str(path)] = video
        self.output, self.errors = work / "answers.jsonl", work / "batch.log"
        manifest = work / "videos.txt"
        manifest.write_text("".join(f"{path}\n" for path in self.video_of))
        self.command = [kinetoscope, "classify", "--server", address, "--from", manifest, "--output", self.output,
                        "--resume", "--concurrency", "1", "--log", "info", "--log-format", "json"]
        self.runs, self.seconds = 0, 0.0

    def run(self):
        begun = time.monotonic()
        while self.runs < 3:
            self.runs += 1
            with self.errors.open("a") as errors:
                if subprocess.run(self.command, stderr=errors).returncode == 0:
                    break
        self.seconds = time.monotonic() - begun

    def row(self, expected):
        answers = collections.defaultdict(list)
        for line in self.output.read_text().splitlines():
            answer = json.loads(line)
            labels = [(label["label"], label["score"]) for label in answer["labels"]]
            right = not answer["partial"] and is_right(labels, expected[self.video_of[answer["video"]]])
            answers[answer["video"]].append(right)
        log = self.errors.read_text().splitlines()
        errors = collections.Counter(line.split(": ", 2)[2] for line in log if line.startswith("kinetoscope: /"))
        return {
            "calls": len(self.video_of),
            "right": sum(all(answers[video]) for video in answers),
            "wrong": sum(not all(answers[video]) for video in answers),
            "lost": len(self.video_of) - len(answers),
            "twice": sum(len(answers[video]) > 1 for video in answers),
            "client's retries": sum('"trying again"' in line for line in log),
            "runs": self.runs,
            "errors of a run": in_words(errors),
        }


# ---- Phases ----


class Drill:
    def __init__(self, seconds, replicas, has_disk, clock):
        self.seconds, self.replicas, self.has_disk, self.clock = seconds, replicas, has_disk, clock

    def phases(self):
        return {"steady": self.steady, "rolling restart": self.rolling_restart, "kill -9": self.killed,
                "hung": self.hung, "full disk": self.full_disk, "clock jump": self.clock_jump}

    def wait(self, share):
        time.sleep(self.seconds * share)

    def replica_with_stream(self):
        """The one that answered the `ClassifyVideos` stream last."""
        def last_answer(replica):
            times = [line["timestamp"] for line in replica.log_lines()
                     if line.get("span", {}).get("key", "").startswith("ClassifyVideos-")]
            return max(times, default="")
        return max(self.replicas, key=last_answer)

    def steady(self):
        self.wait(1)

    def rolling_restart(self):
        drained = []
        for replica in self.replicas:
            drained.append(replica.stop())
            replica.start()
            self.wait(0.25)
        return f"draining took {', '.join(f'{seconds:.1f}' for seconds in drained)} s"

    def killed(self):
        self.wait(0.25)
        replica = self.replica_with_stream()
        # Stopped first, so that it dies in the midst of some calls.
        replica.send(signal.SIGSTOP)
        time.sleep(1)
        replica.kill()
        self.wait(0.25)
        replica.start()
        self.wait(0.5)

    def hung(self):
        self.wait(0.1)
        replica = self.replica_with_stream()
        replica.send(signal.SIGSTOP)
        seconds = max(2.4 * BALANCER_TIMEOUT_SECONDS, self.seconds / 2)
        time.sleep(seconds)
        replica.send(signal.SIGCONT)
        self.wait(0.3)
        return f"{seconds:.0f} s; nginx waits {BALANCER_TIMEOUT_SECONDS} s"

    def full_disk(self):
        if not self.has_disk:
            return "SKIPPED: no right to mount a small file system"
        replica = self.replicas[1]
        # Its own view of the file system is the only one that has the mount.
        filler = Path(f"/proc/{replica.process.pid}/root{replica.spool}/filler")
        refused = len(refusals(replica))
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError as error:
                full = error.strerror
        self.wait(0.7)
        filler.unlink()
        refused = len(refusals(replica)) - refused
        self.wait(0.3)
        return f"{full}; it refused {refused} uploads"

    def clock_jump(self):
        if self.clock is None:
            return "SKIPPED: there is no libfaketime"
        replica = self.replicas[2]
        before = len(replica.log_lines())
        for jump, share in [("+3600", 0.35), ("-3600", 0.35), ("+0", 0.3)]:
            self.clock.set(jump)
            self.wait(share)
        times = [datetime.datetime.fromisoformat(line["timestamp"]) for line in replica.log_lines()[before:]]
        jumps = [round((b - a).total_seconds()) for a, b in zip(times, times[1:])]
        seen = ", ".join(f"{jump:+}" for jump in jumps if abs(jump) > 1000)
        return f"the replica's log jumps by {seen or 'NOTHING'} s; {self.clock.what_is_faked()}"


def refusals(replica):
    return [line for line in replica.log_lines() if line["message"] == "an upload could not be written"]


# ---- Tables ----


def in_words(counts):
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "-"


def percentile(values, share):
    return f"{sorted(values)[min(int(len(values) * share), len(values) - 1)]:.2f}" if values else "-"


def row(calls, came, passed_on, worked):
    seconds = [call.ended - call.due for call in calls if call.answers]
    again = sum(call.sent_again if call.kind == "ClassifyVideos" else max(came[call.key] - 1, 0) for call in calls)
    return {
        "calls": len(calls),
        "right": sum(call.answers == [True] for call in calls),
        "wrong": sum(not all(call.answers) for call in calls),
        "lost": sum(not call.answers for call in calls),
        "twice": sum(len(call.answers) > 1 for call in calls),
        "client's retries": again,
        "nginx's": sum(passed_on[call.key] for call in calls),
        "worked on twice": sum(max(worked[call.key] - 1, 0) for call in calls),
        "errors": in_words(collections.Counter(call.error for call in calls if call.error)),
        "p50 s": percentile(seconds, 0.5),
        "p99 s": percentile(seconds, 0.99),
        "longest s": percentile(seconds, 1),
    }


def print_table(title, rows):
    print(f"\n{title}\n")
    names = list(next(iter(rows.values())))
    print("| phase | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for phase, values in rows.items():
        print(f"| {phase} | " + " | ".join(str(values[name]) for name in names) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetoscope", type=Path, required=True, help="the binary")
    parser.add_argument("--nginx", type=Path, required=True, help="the binary")
    parser.add_argument("--libfaketime", default="", help="libfaketimeMT.so.1; the clock does not jump without")
    parser.add_argument("--work", type=Path, required=True, help="an empty directory")
    parser.add_argument("--seconds", type=float, default=20, help="length of a phase, about")
    parser.add_argument("--rate", type=float, default=10, help="ClassifyVideo calls a second")
    parser.add_argument("--upload-rate", type=float, default=1, help="ClassifyVideoStream calls a second")
    parser.add_argument("--stream-rate", type=float, default=3, help="videos a second of the ClassifyVideos stream")
    parser.add_argument("--batch", type=int, default=600, help="videos of the batch")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    work = args.work / "drill"
    work.mkdir()
    videos, long, large = make_videos(work)
    expected = offline_answers(args.kinetoscope, [*videos, large]) | offline_answers(args.kinetoscope, long)
    replicas = [Replica(number, args.kinetoscope, work) for number in (1, 2, 3)]
    clock = Clock(args.libfaketime, work) if args.libfaketime else None
    if clock:
        replicas[2].environment = clock.environment
    drill = Drill(args.seconds, replicas, with_small_disk(replicas[1]), clock)
    for replica in replicas:
        replica.start()
    balancer = Balancer(args.nginx, args.kinetoscope, replicas, work)
    load = Load(balancer.address, videos, large, expected)
    batch = Batch(args.kinetoscope, balancer.address, long, large, args.batch, work)
    batch.start()
    load.start({"ClassifyVideo": args.rate, "ClassifyVideoStream": args.upload_rate, "ClassifyVideos": args.stream_rate})
    for phase, happens in drill.phases().items():
        load.phase = phase
        print(f"{phase}: {happens() or 'done'}", flush=True)
    load.stop()
    batch.join(timeout=2 * DEADLINE_SECONDS)
    for replica in replicas:
        replica.stop()
    balancer.process.terminate()
    balancer.process.wait()

    came, passed_on = balancer.tries()
    worked = collections.Counter(
        line["span"].get("id") for replica in replicas for line in replica.log_lines()
        if line["message"] == "answered" and line["code"] == "Ok")
    faults = 0
    for kind in ["ClassifyVideo", "ClassifyVideoStream", "ClassifyVideos"]:
        calls = [call for call in load.calls if call.kind == kind]
        rows = {phase: row([call for call in calls if call.phase == phase], came, passed_on, worked)
                for phase in drill.phases()}
        print_table(kind, rows)
        faults += sum(values[what] for values in rows.values() for what in ("wrong", "lost", "twice"))
        for call in calls:
            if call.answers != [True]:
                print(f"{call.phase}: {call.key} ({call.video.name}): {call.answers} {call.error}", file=sys.stderr)
    cuts = collections.Counter({f"by {code} in {phase}": count for (phase, code), count in load.cuts.items()})
    print(f"\nThe stream was cut off: {in_words(cuts)}")
    values = batch.row(expected)
    print_table("kinetoscope classify --resume", {f"all, {batch.seconds:.0f} s": values})
    faults += sum(values[what] for what in ("wrong", "lost", "twice"))
    print(f"\n{len(load.calls) + values['calls']} calls, {faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
