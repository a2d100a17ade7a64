#!/usr/bin/env bash
# Proves that decoding opens no connection and no file but the video: traces `kinetoscope classify` with strace, with
# and without isolation, on baits that lead to a local file and a local port, and compares every outcome with the
# server's. Arguments: videos, or directories of them, to check as well; `--help` for more.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh
command -v strace >/dev/null || { echo "strace is missing: apt-get install strace" >&2; exit 1; }
cargo build --release --locked --quiet
exec python3 scripts/check_isolation.py --kinetoscope "${CARGO_TARGET_DIR:-target}/release/kinetoscope" "$@"
