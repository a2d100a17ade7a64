#!/usr/bin/env bash
# Checks the CUDA engine and training on GPUs on a machine without one: every kernel compiled by nvrtc for two kinds of GPUs and
# run on the processor, cuDNN's plans for a GPU that is only described, and lints of what trains on candle's CUDA tensors.
set -euo pipefail
cd "$(dirname "$0")/.."

path=$(./scripts/cuda-libraries.sh)
# All members, as elsewhere: for one alone cargo would build the dependencies with other features once more.
LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} cargo test --workspace --features cuda --lib --quiet -- cuda engine::

cargo check --no-default-features --features cuda --quiet
# Training on candle's CUDA tensors, without compiling candle's kernels.
NVCC=$PWD/scripts/no-gpu-nvcc.sh CUDA_COMPUTE_CAP=90 cargo clippy --workspace --all-targets --features candle-cuda --quiet -- \
    -D warnings
