#!/usr/bin/env python3
"""Compares the pixels of Kinetoscope's decoding with the reference's on any videos: a table of mean distances.

    benches/peers/decode.sh --help                   # once: builds, and installs what this needs
    benches/peers/.venv-decode/bin/python benches/peers/pixels.py --decode-clips target/release/examples/decode_clips VIDEO...

The reference: the ffmpeg command decodes, swscale converts to RGB at full size with its exact flags and BT.601, Pillow
resizes, and the middle is cropped. "level" is the mean absolute distance in levels of 0-255 over all frames. Colours
beyond RGB are clipped by the reference before it resizes and by Kinetoscope after it; "unclipped" is the distance from
a reference that clips after it resizes too, and "beyond" the part of the full-size samples that the reference clips.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 112
# Most frames compared of a video.
FRAMES = 160
FLAGS = "flags=bicubic+full_chroma_int+accurate_rnd"


def ffmpeg(video, chain, pixels, shape, dtype=np.uint8):
    command = ["ffmpeg", "-v", "quiet", "-i", video, "-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", str(FRAMES),
               "-vf", chain, "-pix_fmt", pixels, "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, dtype).reshape(-1, *shape)


def displayed_size(video):
    command = ["ffmpeg", "-v", "quiet", "-i", video, "-map", "0:v:0", "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "-"]
    png = subprocess.run(command, check=True, capture_output=True).stdout
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Path(file.name).write_bytes(png)
        return Image.open(file.name).size


def resize(plane, mode):
    """A plane or an RGB image: short side to 112, the middle of it."""
    height, width = plane.shape[:2]
    short = min(width, height)
    w, h = SIZE * width // short, SIZE * height // short
    left, top = round((w - SIZE) / 2), round((h - SIZE) / 2)
    image = Image.fromarray(plane, mode).resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def unclipped_rgb(planes):
    """BT.601, limited range, in 0-255 but for values beyond."""
    y, u, v = (planes.astype(np.float32) / 256).transpose(1, 0, 2, 3)
    y, u, v = (y - 16) * (255 / 219), (u - 128) * (255 / 224), (v - 128) * (255 / 224)
    return np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=1)


def compare(args, video):
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([args.decode_clips, video, "--isolation", "none", "--pixels", file.name], check=True)
        ours = np.fromfile(file.name, np.uint8).reshape(-1, SIZE, SIZE, 3)
    width, height = displayed_size(video)
    rgb = ffmpeg(video, f"scale=iw:ih:{FLAGS}:in_color_matrix=bt601", "rgb24", (height, width, 3))
    # A video may be shorter than its last, looped clip.
    frames = min(len(rgb), len(ours))
    ours = ours[:frames].astype(np.float32)
    level = np.abs(ours - np.stack([resize(frame, "RGB") for frame in rgb[:frames]])).mean()
    limited = f"scale=iw:ih:{FLAGS}:in_color_matrix=bt601:out_color_matrix=bt601:out_range=tv"
    planes = ffmpeg(video, limited, "yuv444p16le", (3, height, width), np.uint16)
    apart, beyond = [], []
    for at in range(frames):
        exact = unclipped_rgb(planes[at:at + 1])[0]
        beyond.append(((exact < -0.5) | (exact > 255.5)).mean())
        small = np.stack([resize(np.ascontiguousarray(channel), "F") for channel in exact], axis=-1)
        apart.append(np.abs(ours[at] - np.clip(np.round(small), 0, 255)).mean())
    return frames, level, np.mean(apart), np.mean(beyond)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--decode-clips", default="target/release/examples/decode_clips")
    args = parser.parse_args()
    print("| video | frames | level | unclipped | beyond |\n|---|---|---|---|---|")
    for video in args.videos:
        try:
            frames, level, unclipped, beyond = compare(args, video)
            print(f"| {Path(video).name} | {frames} | {level:.2f} | {unclipped:.2f} | {100 * beyond:.1f}% |", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"| {Path(video).name} | not decoded: {Path(error.cmd[0]).name} ended with {error.returncode} | | | |", flush=True)


if __name__ == "__main__":
    main()
