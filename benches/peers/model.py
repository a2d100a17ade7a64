#!/usr/bin/env python3
"""Times one network in Kinetoscope, PyTorch, ONNX Runtime and OpenVINO; see model.sh.

Every engine gets the same weights and the same clips, with static shapes. Each runs in a process of its own that
waits while another one is measured; the engines take turns (A B C D A B C D ...), so that a machine that slows
down slows all of them. A turn is a number of runs whose median counts; the table shows the median over turns.
Kinetoscope's process is started anew for every turn.

"ov latency" and "ov throughput" are OpenVINO's performance hints, "int8" is quantised by NNCF with its defaults;
in throughput mode the time is that of all its parallel requests together, divided by their clips.

--avx2 keeps all engines to vectors of 256 bits, as processors without AVX-512 have. ONNX Runtime can't be kept to them and is
left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))

NETWORKS = {
    "resnet-34-a": (34, "a", "resnet3d", "2018"),
    "resnet-18-a": (18, "a", "resnet3d", "2018"),
    "resnet-50-b": (50, "b", "resnet3d", "2020"),
    "r3d-18": (18, "b", "torchvision-r3d", "torchvision"),
}
CLASSES = 400
ENGINES = ["kinetoscope", "torch", "torch compiled", "onnxruntime", "ov latency", "ov throughput", "ov int8 latency",
           "ov int8 throughput"]
# What keeps PyTorch, and oneDNN in PyTorch and OpenVINO, from wider vectors.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Time for the spinning threads of the engine before to fall asleep.
PAUSE_SECONDS = 0.3


def clips(batch, preprocessing):
    """The clips of `kinetoscope bench model`, (n, 3, 16, 112, 112) f32."""
    import generate
    import torch
    shape = (16, 112, 112, 3)
    rgb = [generate.counter_bytes(index, "bench", 16 * 112 * 112 * 3).reshape(shape) for index in range(batch)]
    return torch.stack([generate.normalise(clip, preprocessing) for clip in rgb])


def network(name):
    import generate
    depth, shortcut, family, preprocessing = NETWORKS[name]
    arch = generate.architecture(depth, shortcut, family=family)
    return generate.build(arch, CLASSES, depth, preprocessing), preprocessing


# ---- Preparation, once a network ----


def prepare(args, work, name):
    """Writes checkpoint, model file and ONNX and OpenVINO graphs; skips what exists."""
    import torch
    pth, model = work / f"{name}.pth", work / f"{name}.safetensors"
    net, preprocessing = None, NETWORKS[name][3]
    if not model.exists():
        net, _ = network(name)
        torch.save({"state_dict": net.state_dict()}, pth)
        labels = work / "labels.txt"
        labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
        subprocess.run([args.kinetoscope, "convert", pth, model, "--labels", labels, "--preprocessing", preprocessing],
                       check=True)
    for batch in args.batch:
        onnx = work / f"{name}-{batch}.onnx"
        if not onnx.exists():
            if net is None:
                net, _ = network(name)
            torch.onnx.export(net, (clips(batch, preprocessing),), onnx, dynamo=True, external_data=False,
                              input_names=["clips"], output_names=["logits"])
    if any("int8" in engine for engine in args.engines):
        import nncf
        import openvino
        for batch in args.batch:
            xml = work / f"{name}-{batch}-int8.xml"
            if not xml.exists():
                data = [clips(batch, preprocessing).numpy() for _ in range(2)]
                graph = openvino.Core().read_model(work / f"{name}-{batch}.onnx")
                openvino.save_model(nncf.quantize(graph, nncf.Dataset(data), subset_size=2), xml)


# ---- Engines: each gives a function that runs a batch, and how many clips a call does ----


def torch_engine(compiled, work, name, batch, threads):
    import torch
    torch.set_num_threads(threads)
    net, preprocessing = network(name)
    inputs = clips(batch, preprocessing)
    candidates = {}
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        candidate, data = net.to(memory_format=memory_format), inputs.to(memory_format=memory_format)
        run = torch.compile(candidate) if compiled else candidate
        with torch.inference_mode():
            run(data)
            start = time.perf_counter()
            run(data)
            candidates[time.perf_counter() - start] = (memory_format, run)
    memory_format, run = candidates[min(candidates)]
    net.to(memory_format=memory_format)
    data = inputs.to(memory_format=memory_format)

    def call():
        with torch.inference_mode():
            return run(data).numpy()
    return call, batch


def onnxruntime_engine(work, name, batch, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(work / f"{name}-{batch}.onnx", options, ["CPUExecutionProvider"])
    inputs = {"clips": clips(batch, NETWORKS[name][3]).numpy()}
    return lambda: session.run(None, inputs)[0], batch


def openvino_engine(hint, int8, work, name, batch, threads):
    import openvino
    core = openvino.Core()
    path = work / (f"{name}-{batch}-int8.xml" if int8 else f"{name}-{batch}.onnx")
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(path, "CPU", options)
    inputs = clips(batch, NETWORKS[name][3]).numpy()
    if hint == "LATENCY":
        request = compiled.create_infer_request()
        return lambda: next(iter(request.infer(inputs, share_inputs=True).values())), batch
    requests = [compiled.create_infer_request() for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))]

    def call():
        for request in requests:
            request.start_async([inputs], share_inputs=True)
        for request in requests:
            request.wait()
        return requests[0].get_output_tensor(0).data
    return call, batch * len(requests)


def engine(label, *args):
    match label:
        case "torch":
            return torch_engine(False, *args)
        case "torch compiled":
            return torch_engine(True, *args)
        case "onnxruntime":
            return onnxruntime_engine(*args)
    hint = "LATENCY" if label.endswith("latency") else "THROUGHPUT"
    return openvino_engine(hint, "int8" in label, *args)


def timed(call, seconds):
    times = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def serve_turns(args):
    """A peer's process: answers each line on standard input with the milliseconds a clip of one turn."""
    import numpy as np
    call, count = engine(args.worker, Path(args.work), args.network[0], args.batch[0], args.threads[0])
    logits = np.array(call(), np.float32)
    np.save(args.logits, logits)
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        print(json.dumps(1e3 * timed(call, args.seconds) / count), flush=True)


# ---- Turns ----


class Peer:
    def __init__(self, args, label, work, name, batch, threads):
        self.logits_path = work / f"{label.replace(' ', '-')}.npy"
        command = [sys.executable, __file__, "--worker", label, "--work", work, "--network", name, "--batch", str(batch),
                   "--threads", str(threads), "--seconds", str(args.seconds), "--logits", self.logits_path]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | (AVX2 if args.avx2 else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment, stderr=None if args.verbose else subprocess.DEVNULL)
        self.answer()

    def answer(self):
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue  # some engine's own chatter
        raise RuntimeError(f"{self.process.args[3]} died; run with --verbose to see why")

    def turn(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def logits(self):
        import numpy as np
        return np.load(self.logits_path)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Kinetoscope:
    def __init__(self, args, work, name, batch, threads):
        self.path = work / "kinetoscope.f32"
        self.command = [args.kinetoscope, "bench", "model", "--model", work / f"{name}.safetensors", "--batch", str(batch),
                        "--threads", str(threads), "--seconds", str(args.seconds), "--logits", self.path, "--json"]
        if args.avx2:
            self.command += ["--instruction-set", "avx2"]

    def turn(self):
        output = subprocess.run(self.command, check=True, capture_output=True, text=True).stdout
        self.last = json.loads(output)
        return self.last["ms_per_clip"]

    def logits(self):
        import numpy as np
        return np.fromfile(self.path, "<f4").reshape(-1, CLASSES)

    def stop(self):
        pass


def softmax(logits):
    import numpy as np
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def measure(args, work, name, batch, threads):
    import numpy as np
    started = {}
    for label in args.engines:
        if label == "kinetoscope":
            started[label] = Kinetoscope(args, work, name, batch, threads)
        else:
            started[label] = Peer(args, label, work, name, batch, threads)
    times = {label: [] for label in started}
    for _ in range(args.rounds):
        for label, process in started.items():
            time.sleep(PAUSE_SECONDS)
            times[label].append(process.turn())
    reference = softmax(started.get("torch", next(iter(started.values()))).logits())
    rows = []
    for label, process in started.items():
        ratios = [other / own for other, own in zip(times[label], times["kinetoscope"])]
        rows.append({
            "network": name, "batch": batch, "threads": threads, "engine": label,
            "ms_per_clip": statistics.median(times[label]), "min": min(times[label]), "max": max(times[label]),
            "times_slower": statistics.median(ratios),
            "softmax_difference": float(np.abs(softmax(process.logits()) - reference).max()),
        })
        process.stop()
    if "kinetoscope" in started:
        last = started["kinetoscope"].last
        print(f"\n{name}, batch {batch}, {threads} thread(s); kinetoscope: load {last['load_seconds']:.2f} s, "
              f"peak {last['peak_rss_bytes'] / 2**20:.0f} MiB")
    print("| engine | ms a clip | min - max | kinetoscope is faster by | softmax difference |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['engine']} | {row['ms_per_clip']:.1f} | {row['min']:.1f} - {row['max']:.1f} "
              f"| {row['times_slower']:.2f}x | {row['softmax_difference']:.1e} |", flush=True)
    return rows


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetoscope", type=Path, help="the binary")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet-34-a"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--avx2", action="store_true", help="vectors of 256 bits in all engines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least counted time of a turn")
    parser.add_argument("--work", type=Path, help="keep prepared files here")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--verbose", action="store_true", help="show what the peers say")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve_turns(args)
    if args.kinetoscope is None or "kinetoscope" not in args.engines:
        parser.error("--kinetoscope is needed: every ratio is against it (model.sh passes it)")
    if args.avx2:
        args.engines = [label for label in args.engines if label != "onnxruntime"]
    print(f"{processor()}{', AVX2 only' if args.avx2 else ''}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for name in args.network:
            prepare(args, work, name)
            for threads in args.threads:
                for batch in args.batch:
                    rows += measure(args, work, name, batch, threads)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
