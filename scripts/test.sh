#!/usr/bin/env bash
# Installs what is missing and runs every check that a change must pass: format, lints, tests, documentation, licences, and
# a build without FFmpeg. Needs no GPU: tests that want one say so and pass.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh

step() { printf '\n== %s\n' "$*"; }

step format
cargo fmt --all --check

step lints
cargo clippy --workspace --all-targets --quiet -- -D warnings

step tests
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace
else
    cargo test --workspace --lib --bins --tests
fi

step "clients in Python"
./scripts/check-clients.sh

step guides
./scripts/check-guides.sh

step deployment
./scripts/check-deploy.sh

step "documentation and its examples"
cargo test --workspace --doc --quiet
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step licences
./scripts/check-licences.sh

step "without FFmpeg"
cargo check --no-default-features --quiet

step "CUDA engine"
./scripts/check-cuda.sh

printf '\nall checks passed\n'
