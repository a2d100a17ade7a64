#!/usr/bin/env bash
# Runs the commands of the guides with the binary ($KINETOSCOPE, or the one that tests build) and compares what they print;
# scripts/check_guides.py says which. Needs Python 3, ffmpeg, openssl, curl, and a package index for one guide.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --workspace --features cuda --all-targets --quiet
fi
kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/debug/kinetoscope}")
python3 scripts/check_guides.py --kinetoscope "$kinetoscope" \
    docs/{quick-start,http,tuning,security,upgrading}.md
