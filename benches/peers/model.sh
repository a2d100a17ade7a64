#!/usr/bin/env bash
# Measures Kinetoscope beside PyTorch, ONNX Runtime and OpenVINO on this machine: same weights, same clips, in turns.
# Installs pinned peers into benches/peers/.venv. Arguments go to model.py; `model.sh --help` lists them.
set -euo pipefail
cd "$(dirname "$0")/../.."
./scripts/install-deps.sh
cargo build --release --locked --quiet
venv=benches/peers/.venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
exec "$venv/bin/python" benches/peers/model.py --kinetoscope "${CARGO_TARGET_DIR:-target}/release/kinetoscope" "$@"
