#!/usr/bin/env bash
# Installs what is missing and runs every check that a change must pass: format, lints, tests, documentation, licences, and
# builds with fewer features. Needs no GPU: tests that want one say so and pass.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-deps.sh

step() { printf '\n== %s\n' "$*"; }

# The CUDA engine builds without CUDA. With it in every step, nothing is compiled under two sets of features.
members=(--workspace --features cuda)

step format
cargo fmt --all --check

step lints
cargo clippy "${members[@]}" --all-targets --quiet -- -D warnings

step tests
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "${members[@]}"
else
    cargo test "${members[@]}" --lib --bins --tests
fi
# The program that the tests have built, for the steps that run it.
KINETOSCOPE=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/kinetoscope
export KINETOSCOPE

step "clients in other languages"
./scripts/check-clients.sh

step "HTTP clients"
./scripts/check-http.sh

step guides
./scripts/check-guides.sh

step page
./scripts/check-page.sh

step deployment
./scripts/check-deploy.sh

step "documentation and its examples"
cargo test "${members[@]}" --doc --quiet
RUSTDOCFLAGS="-D warnings" cargo doc "${members[@]}" --no-deps --quiet

step licences
./scripts/check-licences.sh

step "CUDA engine"
./scripts/check-cuda.sh

step "other sets of features"
cargo check --workspace --quiet
cargo check --no-default-features --quiet

printf '\nall checks passed\n'
