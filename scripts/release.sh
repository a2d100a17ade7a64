#!/usr/bin/env bash
# Builds dist/kinetoscope-VERSION-TARGET.tar.gz: the program, completions, manual pages, its licences and those of the crates in
# it, documents and deploy/, with a checksum beside it. The program needs the FFmpeg libraries of the machine that it was built
# on, and nothing else but glibc.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "$(git status --porcelain)" ]; then
    echo "there are changes that are not committed: a release is of a commit" >&2
    exit 1
fi
./scripts/install-deps.sh
cargo build --release --locked --bin kinetoscope
kinetoscope=${CARGO_TARGET_DIR:-target}/release/kinetoscope
version=$("$kinetoscope" --version | sed -n 's/^kinetoscope //p')
target=$(rustc -vV | sed -n 's/^host: //p')
name=kinetoscope-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/$name/completions" dist
install -s -m 755 "$kinetoscope" "$work/$name/"
for shell in bash fish zsh; do
    "$kinetoscope" completions $shell >"$work/$name/completions/kinetoscope.$shell"
done
"$kinetoscope" man "$work/$name/man"
python3 scripts/third_party_licences.py "$target" >"$work/$name/THIRD-PARTY-LICENCES.txt"
cp -r README.md CHANGELOG.md LICENSE-* docs deploy "$work/$name/"
# The same commit gives the same archive.
time=$(git log -1 --format=%ct)
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$time" -c "$name" | gzip -n9 >"dist/$name.tar.gz"
(cd dist && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
"$kinetoscope" --version
objdump -p "$kinetoscope" | awk '$1 == "NEEDED" {print "needs", $2}'
echo "dist/$name.tar.gz"
