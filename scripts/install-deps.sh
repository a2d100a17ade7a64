#!/usr/bin/env bash
# Installs what a Debian or Ubuntu machine lacks to build and test Kinetoscope: the FFmpeg development packages, the
# `ffmpeg` command (tests and the demo make their own videos with it), libclang (for the FFmpeg bindings) and Python's venv
# (for the example clients and the check of licences).
# Does nothing where all is there.
set -euo pipefail

packages=(
    build-essential pkg-config libclang-dev
    libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
    ffmpeg python3-venv
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    echo "installing: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
    echo "Rust is missing: install it from https://rustup.rs (1.89 or newer)" >&2
    exit 1
fi
