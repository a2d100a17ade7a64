#!/usr/bin/env python3
"""Checks Kinetoscope on a GPU and times it beside PyTorch; see benches/gpu-check.sh.

One network, 3D ResNet-34 with shortcut A in full width, the same weights and clips for all:

* scores in every precision beside PyTorch's in f32;
* what a missing GPU is answered with;
* clips a second in bf16 at batch 64 and the time of a batch of one, Kinetoscope and PyTorch (eager, compiled with
  max-autotune, and replayed from a CUDA graph) in turns, channels last, clips on the GPU already;
* the way from 8-bit clips in the host's memory to logits there;
* the matrix products that PyTorch reaches on the same GPU in the same minutes;
* with --training-step, gradients beside the CPU's, and a training step at batch 64 beside PyTorch's in turns.

PyTorch's processes stay, and wait while others are measured; Kinetoscope's is started anew for each turn. The report is
Markdown; each line with a bar says whether it was met.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))

CLASSES = 400
BATCHES = [1, 64]
PEERS = ["eager", "graph", "compiled"]
TOLERANCES = {"bf16": 5e-3, "f16": 5e-3, "f32": 1e-4, "tf32": 5e-3}
TRAINED_BATCH = 64
# Distance of a step's gradients from the CPU's over their length.
TRAINING_TOLERANCES = {"bf16": 0.2, "tf32": 2e-2, "f32": 2e-3}
# After so many no other training is begun.
TRAINING_SECONDS = 430
# For a network that PyTorch compiles; without it the others are measured all the same.
COMPILE_SECONDS = 240


def network():
    import generate
    return generate.build(generate.architecture(34, "a"), CLASSES, 34, "2018")


def clips(count):
    """The clips of `kinetoscope bench model`, (n, 3, 16, 112, 112) f32."""
    import generate
    import torch
    rgb = [generate.counter_bytes(index, "bench", 16 * 112 * 112 * 3) for index in range(count)]
    return torch.stack([generate.normalise(clip.reshape(16, 112, 112, 3), "2018") for clip in rgb])


# ---- PyTorch's processes ----


def peer(variant, weights):
    """Answers each line `BATCH SECONDS` with the seconds of a run."""
    import torch
    torch.backends.cudnn.benchmark = True
    net = network_from(weights).cuda().to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
    inputs, calls = {}, {}
    with torch.inference_mode():
        for batch in BATCHES:
            inputs[batch] = clips(batch).cuda().to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
            calls[batch] = prepare(variant, net, inputs[batch])
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            batch, seconds = int(line.split()[0]), float(line.split()[1])
            print(json.dumps(timed(calls[batch], seconds)), flush=True)


def prepare(variant, net, data):
    import torch
    if variant == "compiled":
        compiled = torch.compile(net, mode="max-autotune")
        call = lambda: compiled(data)
    else:
        call = lambda: net(data)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    if variant != "graph":
        return call
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def timed(call, seconds):
    """Seconds of a run: of many together, and the median of runs that are waited for."""
    import torch
    call()
    torch.cuda.synchronize()
    alone = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds / 2 or len(alone) < 5:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        alone.append(time.perf_counter() - start)
    runs = max(5, int(seconds / 2 / statistics.median(alone)))
    start = time.perf_counter()
    for _ in range(runs):
        call()
    torch.cuda.synchronize()
    return {"throughput": (time.perf_counter() - start) / runs, "latency": statistics.median(alone)}


def network_from(weights):
    import generate
    import torch
    net = generate.ResNet3d(generate.architecture(34, "a"), CLASSES)
    net.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    return net.eval()


def matmul_tflops():
    """The best of a large bf16 product."""
    import torch
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 20)
    return 2 * n**3 / best / 1e12


class Peer:
    def __init__(self, variant, weights, log):
        self.variant = variant
        command = [sys.executable, __file__, "--peer", variant, "--weights", weights]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.answers = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.answers.put(json.loads(line))
            except ValueError:
                continue  # the compiler's own chatter
        self.answers.put(None)

    def answer(self, seconds):
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def turn(self, batch, seconds):
        self.process.stdin.write(f"{batch} {seconds}\n")
        self.process.stdin.flush()
        return self.answer(60)

    def stop(self):
        self.process.kill()
        self.process.wait()


# ---- The report ----


class Report:
    def __init__(self, path):
        self.path, self.lines, self.failed = path, [], 0

    def say(self, text=""):
        print(text, flush=True)
        self.lines.append(text)
        # What is known is on disk, whatever happens next.
        self.path.write_text("\n".join(self.lines) + "\n")

    def bar(self, what, figure, met):
        self.failed += not met
        self.say(f"* {'met' if met else '**NOT MET**'}: {what}: {figure}")


def kinetoscope(args, model, batches, *more, environment=None):
    command = [args.kinetoscope, "bench", "model", "--model", model, "--device", "cuda:0", "--batch",
               ",".join(map(str, batches)), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    return done


def rows(done):
    if done.returncode:
        raise RuntimeError(f"kinetoscope: {done.stderr.strip()}")
    return {row["batch"]: row for row in map(json.loads, done.stdout.splitlines())}


def softmax(logits):
    import numpy as np
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def check_scores(args, report, work, model, weights):
    import numpy as np
    import torch
    report.say("\n## Scores beside PyTorch in f32, largest difference of a softmax over 8 clips\n")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    net = network_from(weights).cuda()
    with torch.inference_mode():
        expected = softmax(net(clips(8).cuda()).cpu().numpy())
    del net
    torch.cuda.empty_cache()
    for precision, tolerance in TOLERANCES.items():
        path = work / f"{precision}.f32"
        done = kinetoscope(args, model, [8], "--precision", precision, "--candidates", "2", "--seconds", "0.1",
                           "--logits", path)
        if done.returncode:
            report.bar(f"{precision}", done.stderr.strip().replace("\n", " "), False)
            continue
        row = rows(done)[8]
        difference = float(np.abs(softmax(np.fromfile(path, "<f4").reshape(-1, CLASSES)) - expected).max())
        figure = (f"{difference:.1e} (at most {tolerance:.0e}); its own check against the CPU: "
                  f"{row['self_check_difference']:.1e}; loaded in {row['load_seconds']:.1f} s")
        report.bar(precision, figure, difference <= tolerance)


def check_no_gpu(args, report, model):
    report.say("\n## Without a GPU\n")
    for what, hidden in [("GPU hidden", {"CUDA_VISIBLE_DEVICES": ""}), ("no CUDA libraries", {"LD_LIBRARY_PATH": ""})]:
        done = kinetoscope(args, model, [1], environment=hidden)
        lines = done.stderr.strip().splitlines()
        if what == "no CUDA libraries" and done.returncode == 0:
            report.say(f"* not tried: {what}: the system has them")
            continue
        report.bar(f"{what}: one line and status 1", f"`{' / '.join(lines)}`", done.returncode == 1 and len(lines) == 1)


def measure(args, report, model, peers):
    own, others = {batch: [] for batch in BATCHES}, {peer.variant: {batch: [] for batch in BATCHES} for peer in peers}
    peaks = []
    for _ in range(args.rounds):
        for batch, row in rows(kinetoscope(args, model, BATCHES, "--seconds", "1")).items():
            own[batch].append(row)
        for peer in peers:
            for batch in BATCHES:
                answer = peer.turn(batch, 1)
                if answer is None:
                    raise RuntimeError(f"PyTorch {peer.variant} died")
                others[peer.variant][batch].append(answer)
        peaks.append(matmul_tflops())
    peak = max(peaks)
    middle = lambda values: statistics.median(values)
    report.say(f"\n## Speed, bf16, medians of {args.rounds} turns\n")
    report.say(f"Matrix product of 8192 x 8192: {peak:.0f} TFLOP/s.\n")
    report.say("| | batch 1, ms a run | batch 64, clips/s |\n|---|---|---|")
    latency = 1e3 * middle([1 / row["device_clips_per_second"] for row in own[1]])
    waited = middle([row["ms_per_run"] for row in own[1]])
    device = middle([row["device_clips_per_second"] for row in own[64]])
    host = middle([row["clips_per_second"] for row in own[64]])
    report.say(f"| Kinetoscope, clips on the GPU | {latency:.3f} | {device:.0f} |")
    report.say(f"| Kinetoscope, from the host's memory to logits there | {waited:.3f} | {host:.0f} |")
    rates, eager = {}, None
    for variant, times in others.items():
        alone = 1e3 * middle([answer["latency"] for answer in times[1]])
        rates[variant] = 64 / middle([answer["throughput"] for answer in times[64]])
        eager = alone if variant == "eager" else eager
        report.say(f"| PyTorch, {variant} | {alone:.3f} | {rates[variant]:.0f} |")
    report.say()
    best = max(rates, key=rates.get)
    share = device * own[64][0]["tflops_direct_equivalent"] / own[64][0]["device_clips_per_second"] / peak
    report.bar(f"batch 64 beside the best PyTorch ({best})", f"{device / rates[best]:.2f}x (at least 1.3x)",
               device / rates[best] >= 1.3)
    report.bar("batch 64", f"{device:.0f} clips/s (at least 10,000)", device >= 10_000)
    report.bar("part of the matrix product's rate", f"{100 * share:.1f}% (at least 32%)", share >= 0.32)
    report.bar("batch 1 from the host beside PyTorch eager on the GPU", f"{waited / eager:.2f}x (at most 0.5x)",
               waited <= 0.5 * eager)
    report.bar("from the host beside the GPU alone", f"{100 * host / device:.1f}% (at least 90%)", host >= 0.9 * device)


def step_times(command):
    """Lines and seconds of the steps of a training step's program, its first ones left out: they choose algorithms."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip().splitlines()[-1:]}")
    lines = done.stdout.splitlines()
    seconds = [float(line.split()[2]) for line in lines if line.startswith("step ")]
    return lines, statistics.median(seconds[len(seconds) // 2:])


def train(args, report, started):
    report.say(f"\n## Training, batch {TRAINED_BATCH}, a step of SGD\n")
    if args.training_step is None:
        report.say("* not tried: TRAINING_STEP names no program")
        return
    peer = ROOT / "examples" / "training_step.py"
    for precision, tolerance in TRAINING_TOLERANCES.items():
        if time.perf_counter() - started > TRAINING_SECONDS:
            report.say(f"* not tried: {precision}: no time is left")
            continue
        own, others = [], []
        for _ in range(args.rounds if precision == "bf16" else 1):
            lines, seconds = step_times([args.training_step, TRAINED_BATCH, 20, 0, precision])
            own.append(seconds)
            others.append(step_times([sys.executable, peer, TRAINED_BATCH, 20, 4, precision])[1])
        beside = next(line for line in lines if "beside the CPU" in line)
        difference = float(beside.split("gradients ")[1].split()[0])
        report.bar(f"{precision}, gradients", f"{beside} (at most {tolerance:.0e})", difference <= tolerance)
        own, other = statistics.median(own), statistics.median(others)
        figure = f"{1e3 * own:.1f} ms, PyTorch {1e3 * other:.1f} ms: {other / own:.2f}x"
        if precision == "f32":
            report.say(f"* {precision}, a step: {figure}")
        else:
            report.bar(f"{precision}, a step", f"{figure} (at least 1x)", other >= own)


def layers(args, report, model):
    command = [args.kinetoscope, "bench", "model", "--model", model, "--device", "cuda:0", "--batch", "64", "--seconds",
               "0.1", "--layers"]
    done = subprocess.run(command, capture_output=True, text=True)
    report.say(f"\n## Layers at batch 64, as they were measured when their algorithms were chosen\n\n```\n{done.stdout}```")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetoscope", type=Path, help="the binary, built with --features cuda")
    parser.add_argument("--training-step", type=Path, help="the example training_step, built with --features candle-cuda")
    parser.add_argument("--report", type=Path, default=Path("gpu-check.md"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.weights)
    import torch
    started = time.perf_counter()
    report = Report(args.report)
    report.say(f"# {torch.cuda.get_device_name(0)}, {time.strftime('%Y-%m-%d')}\n")
    driver = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
                            capture_output=True, text=True).stdout.strip().replace("\n", "; ")
    version = subprocess.run([args.kinetoscope, "--version"], capture_output=True, text=True, check=True).stdout
    report.say(f"{driver}; PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
               f"{torch.backends.cudnn.version()}; {' '.join(version.split())}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        # Measured anew here, whatever was measured before.
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        weights, model, labels = work / "net.pth", work / "net.safetensors", work / "labels.txt"
        torch.save({"state_dict": network().state_dict()}, weights)
        labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
        subprocess.run([args.kinetoscope, "convert", weights, model, "--labels", labels, "--preprocessing", "2018"],
                       check=True, stdout=subprocess.DEVNULL)
        peers = []
        try:
            with open(work / "peers.log", "w") as log:
                # Compiling takes the processor, not the GPU, so that the checks go on meanwhile.
                peers = [Peer(variant, weights, log) for variant in PEERS]
                check_no_gpu(args, report, model)
                check_scores(args, report, work, model, weights)
                ready = []
                for one in peers:
                    left = max(1, COMPILE_SECONDS - (time.perf_counter() - started))
                    if one.answer(left) == "ready":
                        ready.append(one)
                    else:
                        report.say(f"\nPyTorch, {one.variant}: not ready after {time.perf_counter() - started:.0f} s")
                        one.stop()
                measure(args, report, model, ready)
                layers(args, report, model)
                for one in peers:
                    one.stop()
                train(args, report, started)
        except RuntimeError as error:
            report.bar("the run", str(error), False)
        finally:
            for one in peers:
                one.stop()
    report.say(f"\n{time.perf_counter() - started:.0f} s; {report.failed} bars were not met.")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
