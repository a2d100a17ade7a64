#!/usr/bin/env bash
# Measures decoding to 112x112 RGB beside PyAV, decord, OpenCV and the ffmpeg command on this machine, one thread each,
# in turns. Installs pinned peers into benches/peers/.venv-decode. Arguments go to decode.py; `--help` lists them.
set -euo pipefail
cd "$(dirname "$0")/../.."
./scripts/install-deps.sh
cargo build --release --locked --quiet --example decode_clips
venv=benches/peers/.venv-decode
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r benches/peers/decode-requirements.txt
exec "$venv/bin/python" benches/peers/decode.py --decode-clips "${CARGO_TARGET_DIR:-target}/release/examples/decode_clips" "$@"
