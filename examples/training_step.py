"""The measurement of training_step.rs in PyTorch: python training_step.py [BATCH] [STEPS] [THREADS] [PRECISION]

PRECISION puts it on the GPU, channels last: bf16 (autocast), tf32 or f32."""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Unit(nn.Module):
    def __init__(self, channels, kernel, stride):
        super().__init__()
        self.conv = nn.Conv3d(*channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm3d(channels[1])

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.first, self.second = Unit(channels, 3, stride), Unit((channels[1], channels[1]), 3, 1)
        self.stride = stride

    def forward(self, x):
        branch = self.second(F.relu(self.first(x), inplace=True))
        if self.stride > 1:
            x = F.avg_pool3d(x, 1, self.stride)
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, branch.shape[1] - x.shape[1]))
        return F.relu(branch.add_(x), inplace=True)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Unit((3, 64), 7, (1, 2, 2))
        blocks, channels = [], 64
        for layer, count in enumerate((3, 4, 6, 3)):
            for i in range(count):
                halves = layer > 0 and i == 0
                blocks.append(Block((channels // 2 if halves else channels, channels), 2 if halves else 1))
            channels *= 2
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, 400)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.stem(x), inplace=True), 3, 2, 1)
        return self.fc(self.blocks(x).flatten(2).mean(2))


def main():
    positional = [int(arg) for arg in sys.argv[1:4]]
    batch, steps, threads = positional + [8, 5, 2][len(positional) :]
    precision = sys.argv[4] if len(sys.argv) > 4 else None
    torch.set_num_threads(threads)
    device = "cpu" if precision is None else "cuda"
    wait = torch.cuda.synchronize if precision else lambda: None
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "f32"
    network = Network().to(device)
    clips, labels = torch.randn(batch, 3, 16, 112, 112, device=device), torch.arange(batch, device=device)
    if precision:
        network, clips = network.to(memory_format=torch.channels_last_3d), clips.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    for step in range(steps + 1):
        wait()
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(clips), labels)
        forward = time.perf_counter() - start
        optimizer.zero_grad()
        loss.backward()
        backward = time.perf_counter() - start - forward
        optimizer.step()
        wait()
        total = time.perf_counter() - start
        print(f"step {step}: {total:.4f} s (forward {forward:.4f}, backward {backward:.4f}), loss {loss.item():.4f}",
              flush=True)


if __name__ == "__main__":
    main()
