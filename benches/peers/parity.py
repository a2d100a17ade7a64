#!/usr/bin/env python3
"""Compares `kinetoscope classify` with PyTorch and Pillow on real videos.

    benches/peers/model.sh --rounds 1 --batch 1      # once: builds, and installs what this needs
    benches/peers/.venv/bin/python benches/peers/parity.py --kinetoscope target/release/kinetoscope VIDEO...

Frames are decoded by the ffmpeg command, converted to RGB at full size by swscale's most exact settings, resized and
cropped by Pillow as the authors' code does it, and classified by PyTorch with the same checkpoint, clip by clip; a
video's scores are the mean of its clips' softmax. The network has random weights and calibrated batch norm: an error
anywhere shows, which a trained network's sure answers would hide.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import generate  # noqa: E402

CLASSES = 400


def decoded(video, width, height):
    """All frames, u8 (t, h, w, 3), in BT.601 whatever the tags say, as the first Kinetics weights saw them."""
    scale = "scale=in_color_matrix=bt601:flags=bilinear+full_chroma_int+accurate_rnd"
    command = ["ffmpeg", "-v", "quiet", "-i", video, "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", scale,
               "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def size(video):
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height,codec_name",
               "-of", "json", video]
    stream = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"][0]
    return stream["width"], stream["height"], stream["codec_name"]


def pytorch_scores(net, frames, preprocessing):
    pixels = generate.resize_and_crop(frames, preprocessing)
    scores = []
    for start in range(0, len(pixels), 16):
        clip = pixels[start:start + 16]
        clip = clip[np.arange(16) % len(clip)]
        with torch.inference_mode():
            scores.append(torch.softmax(net(generate.normalise(clip, preprocessing)[None])[0].double(), 0))
    return torch.stack(scores).mean(0).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetoscope", type=Path, required=True, help="the binary")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--shortcut", choices=["a", "b"], default="a")
    parser.add_argument("--preprocessing", choices=generate.PREPROCESSING, default="2018")
    parser.add_argument("videos", nargs="+", type=Path)
    args = parser.parse_args()
    net = generate.build(generate.architecture(args.depth, args.shortcut), CLASSES, args.depth, args.preprocessing)
    print("| video | codec | size | frames | largest score | largest difference | same five best |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        pth, model, labels = (Path(work) / name for name in ("net.pth", "net.safetensors", "labels.txt"))
        torch.save({"state_dict": net.state_dict()}, pth)
        labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
        subprocess.run([args.kinetoscope, "convert", pth, model, "--labels", labels, "--preprocessing",
                        args.preprocessing], check=True, stdout=subprocess.DEVNULL)
        for video in args.videos:
            width, height, codec = size(video)
            frames = decoded(video, width, height)
            expected = pytorch_scores(net, frames, args.preprocessing)
            command = [args.kinetoscope, "classify", video, "--model", model, "--top-k", "0", "--json"]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            assert answer["frames"] == len(frames), (answer["frames"], len(frames))
            actual = np.zeros(CLASSES)
            for label in answer["labels"]:
                actual[label["index"]] = label["score"]
            best = [set(np.argsort(-scores)[:5]) for scores in (actual, expected)]
            print(f"| {video.name} | {codec} | {width}x{height} | {len(frames)} | {expected.max():.3f} "
                  f"| {np.abs(actual - expected).max():.1e} | {'yes' if best[0] == best[1] else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
