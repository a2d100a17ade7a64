#!/usr/bin/env bash
# Runs every check and measurement of the CUDA engine on this machine's GPU and writes one report, in less than 9 minutes.
#
#     benches/gpu-check.sh [REPORT]            # gpu-check.md if absent
#
# Needs an NVIDIA driver (580 or newer) and Python with venv; the peers (PyTorch with its CUDA libraries, which Kinetoscope
# uses too) come from PyPI unless PYTHON names an interpreter that has them. KINETOSCOPE names the binary; without it one
# is built, which takes Rust and more time. A binary for a machine without FFmpeg and Rust is built elsewhere by
#
#     cargo build --release --locked --no-default-features --features cuda
#
# TRAINING_STEP names the example training_step, for training on the GPU; it is built too where nvcc is. Elsewhere
#
#     cargo build --release --locked --no-default-features --features candle-cuda --example training_step
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:-gpu-check.md}

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --release --locked --no-default-features --features cuda
    KINETOSCOPE=${CARGO_TARGET_DIR:-target}/release/kinetoscope
    if [ -z "${TRAINING_STEP:-}" ] && command -v nvcc >/dev/null; then
        # Apart: candle's CUDA backend links what the other program loads.
        cargo build --release --locked --no-default-features --features candle-cuda --example training_step \
            --target-dir "${CARGO_TARGET_DIR:-target}/candle-cuda"
        TRAINING_STEP=${CARGO_TARGET_DIR:-target}/candle-cuda/release/examples/training_step
    fi
fi
if [ -z "${PYTHON:-}" ]; then
    venv=benches/peers/.venv-gpu
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/golden/requirements.txt
    PYTHON=$venv/bin/python
fi
# The folders of the wheels nvidia-*, which PyTorch brings.
libraries=$("$PYTHON" - <<'PYTHON'
import pathlib, sysconfig
site = pathlib.Path(sysconfig.get_paths()["purelib"])
print(":".join(str(folder) for folder in sorted(site.glob("nvidia/*/lib"))))
PYTHON
)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec timeout 540 "$PYTHON" benches/peers/gpu.py --kinetoscope "$KINETOSCOPE" \
    ${TRAINING_STEP:+--training-step "$TRAINING_STEP"} --report "$report"
