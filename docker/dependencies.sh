#!/bin/sh
# Compiles the dependencies from the manifests alone, so that a layer that only manifests change can hold them.
# The arguments are cargo's.
set -eu
stubs=$(mktemp)
stub() {
    mkdir -p "$(dirname "$1")"
    echo 'fn main() {}' >"$1"
    echo "$1" >>"$stubs"
}
for crate in . crates/*; do
    stub "$crate/src/lib.rs"
done
stub src/main.rs
stub build.rs
# A manifest that names a target without a file is refused.
for example in $(sed -n '/^\[\[example\]\]$/{n;s/^name = "\(.*\)"$/\1/p}' Cargo.toml); do
    stub "examples/$example.rs"
done
cargo build --release --locked --bin kinetoscope "$@"
# The real files may be older than what was made of the stubs, which cargo would take for up to date then.
cargo clean --release --locked --package kinetoscope --package candle-conv3d
xargs rm <"$stubs"
