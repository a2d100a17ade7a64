"""Writes the PyTorch values that tests/pytorch.rs compares with.

    pip install torch==2.15.0 numpy safetensors==0.8.0
    python generate.py          # writes ops.safetensors beside itself

Each case NAME holds NAME.input, NAME.weight (convolutions), NAME.bias (where it has one), NAME.output,
NAME.upstream (the gradient fed back) and NAME.grad_input, NAME.grad_weight, NAME.grad_bias. Stride, padding and pool
kernel stand in tests/pytorch.rs.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

CONVOLUTIONS = {
    # name: (input shape, weight shape, bias, stride, padding)
    "stem": ((1, 1, 4, 9, 8), (2, 1, 7, 7, 7), False, (1, 2, 2), (3, 3, 3)),
    "residual": ((2, 2, 3, 6, 5), (3, 2, 3, 3, 3), True, 1, 1),
    "downsampling": ((1, 3, 4, 7, 6), (3, 3, 3, 3, 3), False, 2, 1),
    "shortcut": ((1, 4, 3, 5, 6), (6, 4, 1, 1, 1), False, 2, 0),
    "one_frame": ((2, 3, 1, 4, 4), (2, 3, 3, 3, 3), False, 1, 1),
    "lopsided": ((1, 2, 3, 8, 6), (3, 2, 2, 3, 1), True, (2, 3, 1), (0, 2, 1)),
}
POOLS = {
    # name: (input shape, kernel, stride, padding, levels: few levels make ties)
    "stem_pool": ((1, 1, 5, 7, 8), 3, 2, 1, None),
    "tied_pool": ((1, 2, 4, 5, 6), 3, 2, 1, 3),
    "lopsided_pool": ((1, 2, 4, 6, 5), (2, 3, 1), (1, 2, 2), (1, 0, 0), None),
}


def main():
    torch.manual_seed(0)
    tensors = {}

    def record(name, inputs, output):
        upstream = torch.randn_like(output)
        output.backward(upstream)
        tensors[f"{name}.output"] = output.detach()
        tensors[f"{name}.upstream"] = upstream
        for key, value in inputs.items():
            tensors[f"{name}.{key}"] = value.detach()
            tensors[f"{name}.grad_{key}"] = value.grad

    for name, (shape, weight_shape, has_bias, stride, padding) in CONVOLUTIONS.items():
        inputs = {"input": torch.randn(shape), "weight": torch.randn(weight_shape) / 4}
        if has_bias:
            inputs["bias"] = torch.randn(weight_shape[0])
        for value in inputs.values():
            value.requires_grad_()
        output = F.conv3d(inputs["input"], inputs["weight"], inputs.get("bias"), stride, padding)
        record(name, inputs, output)

    for name, (shape, kernel, stride, padding, levels) in POOLS.items():
        x = torch.randn(shape) if levels is None else torch.randint(levels, shape).float()
        x.requires_grad_()
        record(name, {"input": x}, F.max_pool3d(x, kernel, stride, padding))

    path = Path(__file__).with_name("ops.safetensors")
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, {"torch": torch.__version__})
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
