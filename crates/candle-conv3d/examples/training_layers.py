"""The measurements of training_layers.rs in PyTorch: python training_layers.py [BATCH] [ROUNDS] [THREADS]"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

LAYERS = [
    ("conv1", 1, 3, 64, 7, (1, 2, 2), (16, 112, 112)),
    ("layer1", 6, 64, 64, 3, 1, (8, 28, 28)),
    ("layer2.0", 1, 64, 128, 3, 2, (8, 28, 28)),
    ("layer2", 7, 128, 128, 3, 1, (4, 14, 14)),
    ("layer3.0", 1, 128, 256, 3, 2, (4, 14, 14)),
    ("layer3", 11, 256, 256, 3, 1, (2, 7, 7)),
    ("layer4.0", 1, 256, 512, 3, 2, (2, 7, 7)),
    ("layer4", 5, 512, 512, 3, 1, (1, 4, 4)),
]


def main():
    batch, rounds, threads = [int(arg) for arg in sys.argv[1:]] + [8, 5, 2][len(sys.argv) - 1 :]
    torch.set_num_threads(threads)
    totals = [0.0, 0.0]
    for name, count, in_channels, out_channels, kernel, stride, size in LAYERS:
        x = torch.randn(batch, in_channels, *size, requires_grad=in_channels != 3)
        weight = torch.randn(out_channels, in_channels, kernel, kernel, kernel, requires_grad=True)
        times = [[], []]
        for _ in range(rounds + 1):
            start = time.perf_counter()
            y = F.conv3d(x, weight, None, stride, kernel // 2)
            times[0].append(time.perf_counter() - start)
            upstream = torch.ones_like(y)
            start = time.perf_counter()
            y.backward(upstream)
            times[1].append(time.perf_counter() - start)
            x.grad = weight.grad = None
        forward, backward = (statistics.median(t[1:]) * 1e3 for t in times)
        print(f"{name:9} x{count:2}  forward {forward:7.2f} ms  backward {backward:7.2f} ms", flush=True)
        totals[0] += count * forward
        totals[1] += count * backward
    print(f"all: forward {totals[0]:.0f} ms, backward {totals[1]:.0f} ms")


if __name__ == "__main__":
    main()
