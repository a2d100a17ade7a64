#!/usr/bin/env python3
"""Writes the PyTorch goldens beside this file.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python generate.py                    # all files
    venv/bin/python generate.py resnet-34-a        # one
    venv/bin/python generate.py --print-counter    # values for the test in src/model/counter.rs

Weights and frames are not stored: both sides make them from the counter generator of
src/model/counter.rs. A golden holds what only PyTorch can tell:

* batch norm statistics, calibrated by one training-mode forward, so that no layer's activations
  vanish or explode and an error anywhere shows in the logits;
* the logits, computed in f64 from the f32 weights and inputs (the exact answer, where two f32
  implementations would only agree on each other's rounding);
* `golden` in the safetensors metadata: JSON that says how to build network and input.

The `.pth` files are checkpoints as the authors and torchvision save them, for `convert`.
"""

import argparse
import io
import json
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors.numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

import networks

HERE = Path(__file__).parent

# ---- The counter generator (src/model/counter.rs), in wrapping uint64 arithmetic ----

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return np.array([value], np.uint64)


def counter_bits(seed, name, count):
    """The first `count` values of the stream `name` under `seed`, as uint64."""
    key = mix(fnv1a(name.encode()) ^ mix(np.array([seed], np.uint64)))
    return mix(key + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN_GAMMA)


def counter_uniform(seed, name, count):
    """f32 in [-1, 1), 24 bits each: the conversion and both operations are exact."""
    high = (counter_bits(seed, name, count) >> np.uint64(40)).astype(np.float32)
    return high / np.float32(8388608.0) - np.float32(1.0)


def counter_bytes(seed, name, count):
    return (counter_bits(seed, name, count) >> np.uint64(56)).astype(np.uint8)


# ---- Weights ----


def weight(seed, name, shape):
    """One tensor by the convention that src/model/counter.rs and the goldens share, in f32:

    convolution and fc weights: uniform * sqrt(6 / fan_in), which is He's variance 2 / fan_in;
    batch norm: weight 1 + 0.2 * uniform, bias 0.1 * uniform; fc bias 0.1 * uniform;
    a bottleneck's last batch norm (bn3): a quarter of that weight, because at full weight the deep
    network amplifies rounding so much (1e-4 in f32) that a parity test would say nothing.
    """
    uniform = counter_uniform(seed, name, int(np.prod(shape)))
    if len(shape) >= 2:
        values = uniform * np.float32(np.sqrt(6.0 / np.prod(shape[1:])))
    elif name.endswith(".bias"):
        values = uniform * np.float32(0.1)
    else:
        values = np.float32(1.0) + uniform * np.float32(0.2)
        if name.endswith(".bn3.weight"):
            values = values * np.float32(0.25)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill(net, seed):
    """Fills all parameters of `net`; batch norm statistics stay at their defaults."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(weight(seed, name, tuple(parameter.shape)))


# ---- Frames ----


def frames(kind, seed, count, height, width):
    """u8 (t, h, w, 3). All recipes are integer arithmetic."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (count, height, width, 3)), indexing="ij")
    if kind == "black":
        return np.zeros(t.shape, np.uint8)
    if kind == "white":
        return np.full(t.shape, 255, np.uint8)
    if kind == "checkerboard":
        return (((x // 4 + y // 4 + t // 4) % 2) * 255).astype(np.uint8)
    if kind == "gradient":
        # A triangle wave that moves: smooth everywhere, each channel with its own slopes and speed.
        slope = counter_bytes(seed, "gradient", 12).astype(np.int64).reshape(3, 4) % 7 + 1
        phase = (slope[c, 0] * x + slope[c, 1] * y + 4 * slope[c, 2] * t + 64 * slope[c, 3]) % 510
        return np.where(phase <= 255, phase, 510 - phase).astype(np.uint8)
    noise = counter_bytes(seed, "noise", t.size).reshape(t.shape)
    if kind == "noise":
        return noise
    if kind == "binary":
        return np.where(noise >= 128, 255, 0).astype(np.uint8)
    if kind == "mixed":
        # Has edges that show a wrong filter and areas that show a wrong position.
        gradient = frames("gradient", seed, count, height, width)
        return ((3 * gradient.astype(np.uint32) + noise) // 4).astype(np.uint8)
    raise ValueError(kind)


# ---- Preprocessing ----

PREPROCESSING = {
    "2018": dict(divisor=1.0, mean=(114.7748, 107.7354, 99.4750), std=(1.0, 1.0, 1.0)),
    "2020": dict(divisor=255.0, mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737)),
    "torchvision": dict(divisor=255.0, mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)),
}


def normalise(clip, preprocessing):
    """u8 (t, h, w, 3) -> f32 (3, t, h, w), each step rounded to f32."""
    rule = PREPROCESSING[preprocessing]
    pixels = clip.astype(np.float32) / np.float32(rule["divisor"])
    values = (pixels - np.array(rule["mean"], np.float32)) / np.array(rule["std"], np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(3, 0, 1, 2)))


def resize_and_crop(video, preprocessing, size=112):
    """u8 (t, h, w, 3) -> u8 (t, size, size, 3)."""
    if preprocessing == "torchvision":
        transforms = torchvision.models.video.R3D_18_Weights.KINETICS400_V1.transforms()
        tensor = torch.from_numpy(video).permute(0, 3, 1, 2)
        resized = torchvision.transforms.functional.resize(
            tensor, transforms.resize_size, interpolation=transforms.interpolation, antialias=False)
        cropped = torchvision.transforms.functional.center_crop(resized, transforms.crop_size)
        check = transforms(tensor)
        ours = normalise(cropped.permute(0, 2, 3, 1).numpy(), preprocessing)
        assert torch.allclose(check, ours, atol=1e-5), (check - ours).abs().max()
        return cropped.permute(0, 2, 3, 1).numpy()
    out = []
    for frame in video:
        image = PIL.Image.fromarray(frame)
        # `Scale` of the authors' spatial_transforms.py.
        w, h = image.size
        if w < h:
            image = image.resize((size, int(size * h / w)), PIL.Image.BILINEAR)
        else:
            image = image.resize((int(size * w / h), size), PIL.Image.BILINEAR)
        # `CenterCrop` of the same file.
        w, h = image.size
        x1, y1 = int(round((w - size) / 2.0)), int(round((h - size) / 2.0))
        out.append(np.asarray(image.crop((x1, y1, x1 + size, y1 + size))))
    return np.stack(out)


# ---- Networks ----


AUTHORS_STEM = dict(kernel_t=7, stride_t=1, max_pool=True)
TORCHVISION_STEM = dict(kernel_t=3, stride_t=1, max_pool=False)


def resnet(depth, shortcut_kind, widen_factor=1.0, stem=AUTHORS_STEM):
    return dict(depth=depth, shortcut=shortcut_kind, widen_factor=widen_factor, stem=stem)


def architecture(depth, shortcut_kind, widen_factor=1.0, family="resnet3d"):
    stem = TORCHVISION_STEM if family == "torchvision-r3d" else AUTHORS_STEM
    return dict(family=family, **resnet(depth, shortcut_kind, widen_factor, stem))


def build(arch, classes, seed, preprocessing, frame_count=16, size=112):
    """A network with weights from the counter and calibrated batch norm."""
    net = networks.make(arch, classes)
    fill(net, seed)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        # In training mode each layer is normalised by its own batch; momentum 1 keeps just that batch.
        norm.momentum = 1.0
    recipes = [("noise", 1001), ("gradient", 1002), ("gradient", 1003), ("checkerboard", 0),
               ("binary", 1004), ("black", 0), ("white", 0), ("gradient", 1005)]
    batch = torch.stack([normalise(frames(k, s, frame_count, size, size), preprocessing) for k, s in recipes])
    with torch.no_grad():
        net.train()(batch)
    net.eval()
    return net


# ---- Goldens: logits ----

CLIP = dict(frames=16, size=112, temporal_stride=1)


def family(name, clips=("noise", "gradient"), classes=10, preprocessing="2018", seed=25, clip=None, **settings):
    """A golden of a family with its settings. Widths are a part of the published ones where files would be large."""
    case = dict(arch=dict(family=name, **settings), classes=classes, seed=seed, preprocessing=preprocessing,
                clips=clips, features=True)
    return dict(case, clip=dict(CLIP, **clip)) if clip else case


LOGITS = {
    "resnet-10-b-quarter": dict(
        arch=architecture(10, "b", 0.25), classes=10, seed=10, preprocessing="2020",
        clips=["noise", "black", "white", "checkerboard", "gradient", "binary"]),
    "resnet-18-a": dict(
        arch=architecture(18, "a"), classes=400, seed=18, preprocessing="2018", clips=["noise", "black"]),
    "resnet-34-a": dict(
        arch=architecture(34, "a"), classes=400, seed=34, preprocessing="2018",
        clips=["gradient", "noise", "checkerboard"], features=True),
    "resnet-50-b": dict(
        arch=architecture(50, "b"), classes=400, seed=50, preprocessing="2020", clips=["noise", "gradient"]),
    "torchvision-r3d-18": dict(
        arch=architecture(18, "b", family="torchvision-r3d"), classes=400, seed=3, preprocessing="torchvision",
        clips=["binary", "gradient"]),
    "mc3-18": family("mc3", clips=["binary", "gradient"], preprocessing="torchvision"),
    "torchvision-r2plus1d-18": family(
        "torchvision-r2plus1d", preprocessing="torchvision", depth=18, middle="block", epsilon=1e-5),
    "ig-65m-r2plus1d-10": family(
        "torchvision-r2plus1d", preprocessing="torchvision", clip=dict(frames=8), depth=10, middle="conv", epsilon=1e-3),
    "r2plus1d-10-half": family("r2plus1d", **resnet(10, "b", 0.5), preprocessing="2020"),
    "r2plus1d-50-quarter": family("r2plus1d", **resnet(50, "b", 0.25), preprocessing="2020"),
    "resnext-50-quarter": family("resnext", depth=50, cardinality=32, widen_factor=0.25),
    "wide-resnet-50-half": family("wide-resnet", depth=50, widen_factor=0.5),
    "preact-resnet-18-half": family("preact-resnet", depth=18, widen_factor=0.5),
    "preact-resnet-50-quarter": family("preact-resnet", depth=50, widen_factor=0.25),
    "densenet-121-quarter": family("densenet", depth=121, growth=8, names="dotted"),
    "c3d-eighth": family("c3d", widen_factor=0.125, pool5="ceil"),
    "c3d-eighth-padded": family("c3d", widen_factor=0.125, pool5="padded"),
}

# ---- Goldens: from decoded frames to logits ----

FRAMES = {
    "frames-2018": dict(arch=architecture(10, "a", 0.25), seed=2018, preprocessing="2018"),
    "frames-2020": dict(arch=architecture(10, "b", 0.25), seed=2020, preprocessing="2020"),
    "frames-torchvision": dict(
        arch=architecture(10, "b", 0.25, family="torchvision-r3d"), seed=18, preprocessing="torchvision"),
}


def exact(net, inputs):
    """Features and logits in f64, rounded to f32 once; prints how far PyTorch's own f32 is."""
    with torch.no_grad():
        single = net(inputs)
        net = net.double()
        features = net.embed(inputs.double())
        logits = net.classify(features)
    distance = (single.double() - logits).norm() / logits.norm()
    print(f"  f32 PyTorch is {distance:.1e} from the f64 logits", flush=True)
    return features.float().numpy(), logits.float().numpy()


def running_statistics(net):
    return {name: value.detach().float().numpy().copy() for name, value in net.named_buffers()
            if name.endswith(("running_mean", "running_var"))}


def save(name, tensors, golden):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, HERE / f"{name}.safetensors", {"golden": json.dumps(golden, sort_keys=True)})


def write_logits(name, case):
    clip = case.get("clip", CLIP)
    frame_count, size = clip["frames"], clip["size"]
    net = build(case["arch"], case["classes"], case["seed"], case["preprocessing"], frame_count, size)
    if case["arch"]["family"] == "torchvision-r3d":
        reference = torchvision.models.video.r3d_18(weights=None)
        reference.load_state_dict(net.state_dict(), strict=True)
        probe = normalise(frames("noise", 7, 16, 112, 112), case["preprocessing"])[None]
        with torch.no_grad():
            difference = (reference.eval()(probe) - net(probe)).norm() / net(probe).norm()
        assert difference < 1e-6, f"differs from torchvision's own r3d_18 by {difference}"
    statistics = running_statistics(net)
    clips = [dict(kind=kind, seed=index) for index, kind in enumerate(case["clips"])]
    inputs = torch.stack(
        [normalise(frames(c["kind"], c["seed"], frame_count, size, size), case["preprocessing"]) for c in clips])
    features, logits = exact(net, inputs)
    tensors = dict(statistics, logits=logits)
    if case.get("features"):
        tensors["features"] = features
    golden = dict(architecture=case["arch"], classes=case["classes"], seed=case["seed"],
                  preprocessing=case["preprocessing"], clips=clips)
    if clip != CLIP:
        golden["clip"] = clip
    save(name, tensors, golden)


def write_frames(name, case):
    net = build(case["arch"], 10, case["seed"], case["preprocessing"])
    statistics = running_statistics(net)
    video = dict(kind="mixed", seed=5, frames=16, height=120, width=161)
    rgb = frames(video["kind"], video["seed"], video["frames"], video["height"], video["width"])
    cropped = resize_and_crop(rgb, case["preprocessing"])
    _, logits = exact(net, normalise(cropped, case["preprocessing"])[None])
    golden = dict(architecture=case["arch"], classes=10, seed=case["seed"],
                  preprocessing=case["preprocessing"], video=video)
    save(name, dict(statistics, logits=logits, cropped_frame_0=cropped[0]), golden)


# ---- Checkpoints ----


class OldStorage:
    """Stands for a storage while an old checkpoint is pickled."""

    def __init__(self, key, values):
        self.key, self.values = key, values


class OldTensor:
    """Pickles as torch 0.3 pickled a CUDA tensor: `_rebuild_tensor` of a `torch.cuda.FloatStorage`."""

    def __init__(self, storage, offset, shape, stride):
        self.parts = (storage, offset, shape, stride)

    def __reduce__(self):
        return torch._utils._rebuild_tensor, self.parts


def save_as_torch_0_3(checkpoint, path):
    """The format of torch.save before 1.6, with the storages of a GPU, as the first Kinetics weights have them."""
    storages = []

    def old(value):
        if isinstance(value, torch.Tensor):
            value = value.detach().contiguous()
            kind = torch.cuda.LongStorage if value.dtype == torch.int64 else torch.cuda.FloatStorage
            storage = OldStorage(str(94000000000000 + 64 * len(storages)), value.numpy().ravel())
            storage.kind = kind
            storages.append(storage)
            return OldTensor(storage, 0, tuple(value.shape), tuple(value.stride()))
        if isinstance(value, dict):
            return type(value)((key, old(item)) for key, item in value.items())
        if isinstance(value, list):
            return [old(item) for item in value]
        return value

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, OldStorage):
                return ("storage", item.kind, item.key, "cuda:0", item.values.size, None)
            return None

    system = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    with open(path, "wb") as out:
        pickle.dump(0x1950A86A20F9469CFC6C, out, protocol=2)
        pickle.dump(1001, out, protocol=2)
        pickle.dump(system, out, protocol=2)
        Pickler(out, protocol=2).dump(old(checkpoint))
        # torch sorts the keys, which is not the order of use.
        storages.sort(key=lambda storage: storage.key, reverse=True)
        pickle.dump([storage.key for storage in storages], out, protocol=2)
        for storage in storages:
            out.write(struct.pack("<q", storage.values.size))
            out.write(storage.values.tobytes())


def trained_a_step(arch, classes, seed, preprocessing):
    """Network and optimizer after one step with momentum, so that the optimizer has tensors of its own."""
    net = build(arch, classes, seed, preprocessing)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
    clip = normalise(frames("noise", 1, 16, 112, 112), preprocessing)[None]
    net(clip).square().mean().backward()
    optimizer.step()
    return net, optimizer


def prefixed(state_dict):
    return OrderedDict((f"module.{name}", value) for name, value in state_dict.items())


def write_checkpoint(name, case):
    net, optimizer = trained_a_step(case["arch"], case["classes"], case["seed"], case["preprocessing"])
    path = HERE / f"{name}.pth"
    checkpoint = dict(epoch=200, arch=f"resnet-{case['arch']['depth']}", optimizer=optimizer.state_dict())
    if name == "authors-2018":
        # Batch norm had no num_batches_tracked before torch 0.4.1.
        weights = OrderedDict((k, v) for k, v in net.state_dict().items() if "num_batches" not in k)
        save_as_torch_0_3(dict(checkpoint, state_dict=prefixed(weights)), path)
    elif name == "authors-2020":
        torch.save(dict(checkpoint, state_dict=prefixed(net.state_dict()), scheduler=dict(best=1.5, patience=10)), path)
    elif name == "authors-2020-legacy":
        torch.save(dict(checkpoint, state_dict=net.state_dict()), path, _use_new_zipfile_serialization=False)
    else:
        torch.save(net.state_dict(), path)
    _, logits = exact(net, torch.stack([normalise(frames("gradient", 2, 16, 112, 112), case["preprocessing"])]))
    golden = dict(architecture=case["arch"], classes=case["classes"], seed=case["seed"],
                  preprocessing=case["preprocessing"], clips=[dict(kind="gradient", seed=2)])
    save(f"{name}-logits", dict(logits=logits), golden)


# A small part of the width: real layouts in small files.
CHECKPOINTS = {
    "authors-2018": dict(arch=architecture(10, "a", 1 / 32), classes=4, seed=61, preprocessing="2018"),
    "authors-2020": dict(arch=architecture(10, "b", 1 / 64), classes=4, seed=62, preprocessing="2020"),
    "authors-2020-legacy": dict(arch=architecture(18, "b", 1 / 64), classes=4, seed=63, preprocessing="2020"),
    "torchvision": dict(
        arch=architecture(18, "b", 1 / 64, family="torchvision-r3d"), classes=4, seed=64, preprocessing="torchvision"),
}


# ---- Goldens: training ----


def write_optimizers(name, case):
    """Weights after each of five steps of torch.optim's rules, from weights and gradients of the counter."""
    tensors = {}
    for key, (rule, settings) in case.items():
        parameter = nn.Parameter(torch.from_numpy(counter_uniform(1, "weight", 64)))
        optimizer = getattr(torch.optim, rule)([parameter], **settings)
        for step in range(5):
            parameter.grad = torch.from_numpy(counter_uniform(2, f"gradient {step}", 64))
            optimizer.step()
            tensors[f"{key}.{step}"] = parameter.detach().numpy().copy()
    save(name, tensors, {key: dict(settings, rule=rule) for key, (rule, settings) in case.items()})


def write_step(name, case):
    """Loss and weights of one full training step: forward in training mode, backward, SGD with momentum, twice, so that the
    second step sees what the first one moved. In f64, rounded once."""
    net = networks.make(case["arch"], case["classes"])
    fill(net, case["seed"])
    net = net.double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.001)
    tensors = {}
    for step in range(2):
        values = counter_uniform(case["seed"], f"clips {step}", 4 * 3 * 8 * 32 * 32).reshape(4, 3, 8, 32, 32)
        loss = F.cross_entropy(net(torch.from_numpy(values).double()), torch.tensor([0, 1, 2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tensors[f"loss.{step}"] = np.array([loss.item()], np.float32)
    for key, value in net.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            tensors[key] = value.float().numpy()
    save(name, tensors, dict(architecture=case["arch"], classes=case["classes"], seed=case["seed"], preprocessing="2020"))


def write_losses(name, case):
    """Losses of torch.nn.functional and their gradients, of logits and labels of the counter."""
    tensors = {}
    clips, classes = 6, 5
    logits = 3 * counter_uniform(3, "logits", clips * classes).reshape(clips, classes)
    one = torch.tensor([0, 4, 2, 2, 1, 3])
    others = one.roll(1)
    weight = torch.from_numpy(1.5 + counter_uniform(3, "weights", classes))
    several = torch.from_numpy((counter_uniform(3, "several", clips * classes) > 0).astype(np.float32).reshape(clips, classes))
    # Mixup and CutMix of each clip with the one before it: labels are parts of both.
    mixed = 0.7 * F.one_hot(one, classes) + 0.3 * F.one_hot(others, classes)
    for key, (kind, settings) in case.items():
        labels = dict(one=one, mixed=mixed, several=several)[kind]
        settings = dict(settings)
        for setting in ("weight", "pos_weight"):
            if setting in settings:
                settings[setting] = weight
        variable = torch.from_numpy(logits.copy()).requires_grad_()
        loss = F.binary_cross_entropy_with_logits if kind == "several" else F.cross_entropy
        value = loss(variable, labels, **settings)
        value.backward()
        tensors[f"{key}.loss"] = np.array([value.item()], np.float32)
        tensors[f"{key}.gradient"] = variable.grad.numpy().copy()
    tensors["several"] = several.numpy()
    save(name, tensors, dict(case))


def write_recipe(name, case):
    """Five steps with warm-up and cosine, smoothed labels, clipped gradients and an average of the weights: rates and losses, and
    of the average the last layer, the first statistics and the mean size of every tensor. In f64, rounded once."""
    net = ResNet3d(case["arch"], case["classes"])
    fill(net, case["seed"])
    net = net.double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.001)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[2])

    def average(old, new, count):
        step = int(count) - 1
        decay = min(0.9, (1 + step) / (10 + step))
        return decay * old + (1 - decay) * new

    averaged = torch.optim.swa_utils.AveragedModel(net, avg_fn=average, use_buffers=True)
    averaged.update_parameters(net)
    tensors = {}
    for step in range(5):
        values = counter_uniform(case["seed"], f"clips {step}", 4 * 3 * 8 * 32 * 32).reshape(4, 3, 8, 32, 32)
        loss = F.cross_entropy(net(torch.from_numpy(values).double()), torch.tensor([0, 1, 2, 1]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        tensors[f"rate.{step}"] = np.array([optimizer.param_groups[0]["lr"]], np.float32)
        tensors[f"loss.{step}"] = np.array([loss.item()], np.float32)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(net)
    for key, value in averaged.module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        tensors[f"size.{key}"] = np.array([value.square().mean().sqrt().item()], np.float32)
        if key.startswith(("fc.", "bn1.")):
            tensors[key] = value.float().numpy()
    save(name, tensors, dict(architecture=case["arch"], classes=case["classes"], seed=case["seed"], preprocessing="2020"))


LOSSES = {
    "losses": {
        "plain": ("one", dict()),
        "smoothed": ("one", dict(label_smoothing=0.1)),
        "weighted": ("one", dict(weight="weights")),
        "weighted-and-smoothed": ("one", dict(weight="weights", label_smoothing=0.2)),
        "mixed": ("mixed", dict()),
        "mixed-and-smoothed": ("mixed", dict(label_smoothing=0.1)),
        "binary": ("several", dict()),
        "binary-weighted": ("several", dict(pos_weight="weights")),
    },
}

RECIPES = {"recipe-10-b": dict(arch=architecture(10, "b", 1 / 16), classes=3, seed=73)}

OPTIMIZERS = {
    "optimizers": {
        "plain": ("SGD", dict(lr=0.1)),
        "decay": ("SGD", dict(lr=0.1, weight_decay=0.01)),
        "momentum": ("SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.001)),
        "dampening": ("SGD", dict(lr=0.05, momentum=0.9, dampening=0.5, weight_decay=0.01)),
        "nesterov": ("SGD", dict(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)),
        "adamw": ("AdamW", dict(lr=0.01, weight_decay=0.05)),
    },
}

STEPS = {
    "step-10-a": dict(arch=architecture(10, "a", 1 / 16), classes=3, seed=71),
    "step-10-b": dict(arch=architecture(10, "b", 1 / 16), classes=3, seed=72),
}


def print_counter():
    for seed, name in [(0, "conv1.weight"), (34, "layer1.0.bn1.bias"), (2**64 - 1, "")]:
        bits = [hex(int(v)) for v in counter_bits(seed, name, 3)]
        uniform = [float(v) for v in counter_uniform(seed, name, 3)]
        print(f"({seed}, {name!r}): bits {bits}, uniform {uniform}, bytes {counter_bytes(seed, name, 3).tolist()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="goldens to write; all if none")
    parser.add_argument("--print-counter", action="store_true", help="print values of the counter generator and stop")
    arguments = parser.parse_args()
    if arguments.print_counter:
        return print_counter()
    writers = [(LOGITS, write_logits), (FRAMES, write_frames), (CHECKPOINTS, write_checkpoint),
               (OPTIMIZERS, write_optimizers), (LOSSES, write_losses), (STEPS, write_step), (RECIPES, write_recipe)]
    unknown = set(arguments.names) - {name for cases, _ in writers for name in cases}
    if unknown:
        sys.exit(f"no such golden: {', '.join(sorted(unknown))}")
    for cases, write in writers:
        for name, case in cases.items():
            if not arguments.names or name in arguments.names:
                print(name, flush=True)
                write(name, case)


if __name__ == "__main__":
    main()
