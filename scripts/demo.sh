#!/usr/bin/env bash
# From a fresh clone to a first answer: builds, makes a sample video, starts the server, classifies the video over gRPC
# and stops the server.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh

echo "building (some minutes the first time)"
# The clients for clouds, hubs and collectors would double the time.
cargo build --release --locked --no-default-features --features video

work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# A camera that zooms into a fractal: 4 seconds, 640x480, H.264.
ffmpeg -loglevel error -f lavfi -i mandelbrot=size=640x480:rate=25:end_scale=0.05:end_pts=100 -t 4 \
    -pix_fmt yuv420p "$work/zoom.mp4"

kinetoscope="${CARGO_TARGET_DIR:-target}/release/kinetoscope"
. scripts/server.sh
start_server "$kinetoscope" "$work/server.log"

echo "server on $address; classifying a zoom into the Mandelbrot set:"
"$kinetoscope" classify "$work/zoom.mp4" --server "$address" --segments
