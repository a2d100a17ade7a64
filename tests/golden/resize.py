"""Writes resize.json: small images resized by Pillow (bilinear) and PyTorch (bilinear, not antialiased).

The Rust tests check their own reference implementations against it, so they need no Python:

    pip install pillow==13.0.0 torch numpy
    python tests/golden/resize.py > tests/golden/resize.json
"""

import json

import numpy as np
import torch
from PIL import Image

SIZES = [((17, 13), (5, 7)), ((8, 9), (19, 11)), ((40, 3), (12, 12)), ((1, 1), (4, 4)), ((64, 48), (15, 48))]


def picture(width, height):
    """Bytes of the 'minimal standard' generator, row by row, RGB."""
    state, values = 1, []
    for _ in range(width * height * 3):
        state = state * 48271 % 2147483647
        values.append((state >> 16) & 255)
    return np.array(values, dtype=np.uint8).reshape(height, width, 3)


def case(size, to):
    image = picture(*size)
    pillow = np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BILINEAR))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (to[1], to[0]), mode="bilinear", align_corners=False)
    two_tap = resized.round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return {
        "width": size[0],
        "height": size[1],
        "to_width": to[0],
        "to_height": to[1],
        "pillow": pillow.tobytes().hex(),
        "two_tap": two_tap.tobytes().hex(),
    }


print(json.dumps([case(size, to) for size, to in SIZES], indent=0))
