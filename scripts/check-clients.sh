#!/usr/bin/env bash
# Runs the example clients against a server and compares their answers with the command line's. Needs Python 3 with venv,
# ffmpeg, and a package index for the clients' libraries.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
server=
trap 'kill ${server:-} 2>/dev/null || true; wait; rm -rf "$work"' EXIT

cargo build --quiet
kinetoscope=target/debug/kinetoscope

python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r examples/python/requirements.txt; then
    echo "SKIPPED: the clients' libraries can't be installed here"
    exit 0
fi
python="$work/venv/bin/python"
"$python" -m grpc_tools.protoc -I proto --python_out="$work" --grpc_python_out="$work" kinetoscope/v1/kinetoscope.proto

for i in 1 2 3; do
    ffmpeg -loglevel error -f lavfi -i "testsrc2=size=200x120:rate=25" -t "$i" -pix_fmt yuv420p "$work/$i.mp4"
done
videos=("$work"/[123].mp4)

"$kinetoscope" serve --listen 127.0.0.1:0 --log-format json 2>"$work/log" &
server=$!
for _ in $(seq 100); do
    address=$(sed -n 's/.*"listening".*"address":"\([^"]*\)".*/\1/p' "$work/log")
    [ -n "$address" ] && break
    sleep 0.1
done
[ -n "$address" ] || { cat "$work/log"; echo "the server does not listen"; exit 1; }

"$kinetoscope" classify "${videos[@]}" --json 2>/dev/null >"$work/expected"
check() {
    echo "== $*"
    PYTHONPATH="$work" "$python" "$@" --server "$address" "${videos[@]}" 2>"$work/errors" >"$work/actual" || { cat "$work/errors"; exit 1; }
    "$python" - "$work/expected" "$work/actual" <<'PYTHON'
import json, sys

def read(path):
    return {line["video"]: line["labels"] for line in map(json.loads, open(path))}

expected, actual = map(read, sys.argv[1:])
assert expected.keys() == actual.keys(), f"videos {sorted(actual)}"
for video in expected:
    for ours, theirs in zip(expected[video], actual[video], strict=True):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-5, (video, ours, theirs)
print(f"{len(expected)} answers are those of the command line")
PYTHON
}
check examples/python/classify.py
check examples/python/classify.py --stream
check examples/python/oip.py
check examples/python/oip.py --stream
