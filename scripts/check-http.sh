#!/usr/bin/env bash
# Looks for answers over HTTP that /openapi.json does not promise (schemathesis), and calls the Open Inference Protocol with
# Triton's own client. Runs the binary ($KINETOSCOPE, or the one that tests build). Needs Python 3 with venv, ffmpeg, and a
# package index; says what it skips without one.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
server=
trap 'kill ${server:-} 2>/dev/null || true; wait; rm -rf "$work"' EXIT

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --workspace --features cuda --all-targets --quiet
fi
kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/debug/kinetoscope}")

python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5 'tritonclient[http]==2.73.0'; then
    echo "SKIPPED: the clients' libraries can't be installed here"
    exit 0
fi

. scripts/server.sh
# An upload of which nobody sends anything has to end before the checker gives up.
start_server "$kinetoscope" "$work/log" --model-control --idle-timeout 1s

echo "== schemathesis"
# A schema can't say which bytes are a video, nor which URIs this server may read: some of what fits it is rightly refused.
"$work/venv/bin/schemathesis" run "http://$address/openapi.json" --phases coverage,fuzzing --max-examples 10 \
    --exclude-checks positive_data_acceptance \
    --generation-deterministic --request-timeout 30 --no-color

echo "== tritonclient.http"
ffmpeg -loglevel error -f lavfi -i testsrc2=size=200x120:rate=25 -t 1 -pix_fmt yuv420p "$work/1.mp4"
"$work/venv/bin/python" scripts/check_http.py "$address" "$work/1.mp4"
