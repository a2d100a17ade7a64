#!/usr/bin/env bash
# Repeats a row of the paper's table 2: the authors' 3D ResNet-34 on the validation videos of Kinetics-400.
#
# Never run on the real data so far: nobody who worked on this had the videos and the checkpoint. It was tried from end to
# end with a small checkpoint and made-up videos in their place.
set -euo pipefail

usage() {
    cat <<'END'
Usage: reproduce-table2.sh CHECKPOINT DATA [--videos DIR] [--labels FILE] [--out DIR]

Converts the authors' checkpoint, evaluates it on Kinetics-400's validation videos and prints the paper's figures
(top-1 58.0, top-5 81.3) beside those found. It takes long without a GPU: some
20,000 videos of 10 seconds.

NOT YET RUN on the real data: until somebody who has it does, the figures are unproven.

  CHECKPOINT     resnet-34-kinetics.pth of the authors; weights/README.md says where it is
  DATA           folder with a folder of videos for each of the 400 classes, or an annotation file (Kinetics CSV, or
                 the authors' JSON), of which the validation split is taken
  --videos DIR   where the videos of an annotation file are; beside it if absent
  --labels FILE  the 400 class names in the checkpoint's (alphabetical) order, one a line; if absent, DATA's folders
  --out DIR      where the model and the figures go; table2 if absent

KINETOSCOPE names the program; target/release/kinetoscope, which is built, if unset.
END
}

fail() {
    echo "reproduce-table2: $*" >&2
    exit 1
}

checkpoint='' data='' videos='' labels='' out=table2
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --videos | --labels | --out)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help"
            declare "${1#--}=$2"
            shift
            ;;
        -*) fail "there is no option $1; see --help" ;;
        *)
            if [ -z "$checkpoint" ]; then checkpoint=$1
            elif [ -z "$data" ]; then data=$1
            else fail "one argument too many: $1; see --help"; fi
            ;;
    esac
    shift
done
[ -n "$data" ] || { usage >&2; exit 2; }
[ -f "$checkpoint" ] || fail "there is no checkpoint $checkpoint"
[ -e "$data" ] || fail "there is no $data"

mkdir -p "$out"
split=validation
if [ -d "$data" ]; then
    class_folders() { find -L "$data" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | tr _ ' ' | LC_ALL=C sort; }
    if [ "$(class_folders | wc -l)" -eq 400 ]; then
        # Validation videos alone, so there is nothing to split off.
        split=all
        if [ -z "$labels" ]; then
            labels="$out/labels.txt"
            class_folders >"$labels"
        fi
    fi
fi
[ -n "$labels" ] || fail "$data is no folder of 400 class folders, so --labels has to name the class list"
[ "$(grep -c . "$labels")" -eq 400 ] || fail "$labels has $(grep -c . "$labels") names; Kinetics-400 has 400 classes"

if [ -z "${KINETOSCOPE:-}" ]; then
    root=$(cd "$(dirname "$0")/.." && pwd)
    cargo build --release --locked --manifest-path "$root/Cargo.toml"
    KINETOSCOPE="${CARGO_TARGET_DIR:-$root/target}/release/kinetoscope"
fi

model="$out/resnet-34-kinetics.safetensors"
"$KINETOSCOPE" convert "$checkpoint" "$model" --depth 34 --shortcut a --labels "$labels" --preprocessing 2018
"$KINETOSCOPE" evaluate --model "$model" --data "$data" ${videos:+--videos "$videos"} --split "$split" --out "$out"

# The object "videos" of summary.json.
figure() { sed -n '/^  "videos": {/,/}/ s/.*"'"$1"'": \([0-9.e-]*\).*/\1/p' "$out/summary.json"; }
awk -v top_1="$(figure top_1)" -v top_5="$(figure top_5)" -v average="$(figure average)" -v total="$(figure total)" '
    BEGIN {
        row = "%-36s %6s %6s %8s\n"
        printf "\n" row, "3D ResNet-34, Kinetics validation", "top-1", "top-5", "average"
        printf row, "the paper (table 2)", "58.0", "81.3", "69.7"
        number = "%-36s %6.1f %6.1f %8.1f\n"
        printf number, "here (" total " videos)", 100 * top_1, 100 * top_5, 100 * average
    }'
echo
echo "Videos vanish from YouTube, so yours are likely fewer than the paper's (some 20,000)."
echo "If you see this on the real data, you are the first: please report the figures."
