#!/usr/bin/env bash
# Prints the directories of nvrtc, cuDNN and a driver without GPUs, as LD_LIBRARY_PATH wants them: what the tests of the CUDA
# engine need on a machine without a GPU.
# NVIDIA's libraries are wheels from PyPI, pinned, downloaded once: 600 MB, 1.1 GB unpacked.
set -euo pipefail
cd "$(dirname "$0")/.."

nvrtc=13.0.88 cudnn=9.28.1.4
libraries=${XDG_CACHE_HOME:-$HOME/.cache}/kinetoscope/nvrtc-$nvrtc-cudnn-$cudnn
if [ ! -e "$libraries/complete" ]; then
    rm -rf "$libraries"
    python3 -m venv "$libraries/venv"
    "$libraries/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile --target "$libraries" \
        "nvidia-cuda-nvrtc==$nvrtc" "nvidia-cudnn-cu13==$cudnn"
    touch "$libraries/complete"
fi

# cuDNN wants the driver and cuBLAS to be there, if only to find no GPU with them.
functions=$(strings -a "$libraries"/nvidia/cudnn/lib/*.so.9 | grep -E '^cu[A-Z][A-Za-z0-9]+(_v[0-9]+|_ptsz)?$|^cublasLt[A-Z]' | sort -u)
none=$libraries/no-gpu
mkdir -p "$none"
{
    cat scripts/no-gpu-driver.c
    # CUDA_ERROR_NO_DEVICE
    grep '^cu[A-Z]' <<<"$functions" |
        grep -vxF -f <(sed -n 's/^int \(cu\w*\)(.*/\1/p' scripts/no-gpu-driver.c) | sed 's/.*/int &(void) { return 100; }/'
} | cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$none/libcuda.so.1" -xc -
{
    echo 'unsigned long cublasLtGetVersion(void) { return 130400; }'
    # CUBLAS_STATUS_NOT_INITIALIZED
    grep '^cublasLt[A-Z][A-Za-z0-9]*$' <<<"$functions" | grep -vx cublasLtGetVersion | sed 's/.*/int &(void) { return 1; }/'
} | cc -w -shared -fPIC -Wl,-soname,libcublasLt.so.13 -o "$none/libcublasLt.so.13" -xc -

echo "$libraries/nvidia/cu13/lib:$libraries/nvidia/cudnn/lib:$none"
