#!/bin/sh
# Puts what the runtime stage takes over into /out, the names of the distribution's packages that it needs into /packages, and
# what the program is made of into /parts.json, for sbom.sh. The arguments are cargo's.
set -eu
mkdir -p /out/usr/local/bin /out/usr/local/lib /out/usr/share/doc/kinetoscope /out/etc/kinetoscope
# Symbols stay: panics name functions by them.
strip --strip-debug -o /out/usr/local/bin/kinetoscope target/release/kinetoscope
cp docker/kinetoscope.toml /out/etc/kinetoscope/
cp LICENSE-* /out/usr/share/doc/kinetoscope/
cp src/train/report/font/OFL.txt /out/usr/share/doc/kinetoscope/LICENSE-NotoSans
cp src/train/report/font/OFL-Unifont.txt /out/usr/share/doc/kinetoscope/LICENSE-Unifont
if [ -d /usr/local/share/doc/ffmpeg ]; then
    cp -P /usr/local/lib/libav*.so.* /usr/local/lib/libsw*.so.* /out/usr/local/lib/
    mkdir -p /out/usr/share/doc/ffmpeg
    cp /usr/local/share/doc/ffmpeg/* /out/usr/share/doc/ffmpeg/
fi
# What is linked and not our own is in packages. /usr and / are one, but dpkg may know a file by either name.
for library in $(ldd target/release/kinetoscope | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | grep -v '^/usr/local/'); do
    dpkg-query -S "$library" "/usr$library" "${library#/usr}" 2>/dev/null || true
done | cut -d: -f1 | sort -u >/packages
[ -s /packages ] || { echo "found no package of the libraries that are linked" >&2; exit 1; }

# The licences of what is linked statically want their texts to go along.
cargo tree --locked --edges normal,no-proc-macro --no-dedupe --prefix none --format '{p}' "$@" | cut -d' ' -f1,2 | sort -u |
    while read -r name version; do
        for file in "$CARGO_HOME"/registry/src/*/"$name-${version#v}"/*; do
            case $(basename "$file" | tr a-z A-Z) in
                *LICENSE*|*LICENCE*|COPYING*|COPYRIGHT*|NOTICE*|UNLICENSE*) [ -d "$file" ] || {
                    printf '\n======== %s %s: %s\n\n' "$name" "$version" "$(basename "$file")"
                    cat "$file"
                } ;;
            esac
        done
    done | gzip -9n >/out/usr/share/doc/kinetoscope/licences-of-crates.txt.gz

# Of crates only what is linked: neither macros nor what the build alone runs.
{
    cargo tree --locked --edges normal,no-proc-macro --no-dedupe --prefix none --format '{p}|{l}' "$@" | sort -u |
        jq -R 'split("|") as [$crate, $licence] | ($crate | split(" ")) as [$name, $v] | $v[1:] as $version |
            {type: "library", name: $name, version: $version, purl: "pkg:cargo/\($name)@\($version | @uri)"} +
            if $licence == "" then {} else {licenses: [{expression: ($licence | gsub("/"; " OR "))}]} end'
    if [ -f /usr/local/share/doc/ffmpeg/version ]; then
        . /etc/os-release
        jq -n --arg version "$(cat /usr/local/share/doc/ffmpeg/version)" --arg id "$ID" --arg release "$ID-$VERSION_ID" '
            {type: "library", name: "ffmpeg", version: $version, licenses: [{expression: "LGPL-2.1-or-later"}],
            description: "trimmed, built from the source package",
            purl: "pkg:deb/\($id)/ffmpeg@\($version | @uri)?arch=source&distro=\($release)"}'
    fi
    rustc --version | jq -R 'split(" ")[1] | {type: "library", name: "rust-std", version: .,
        licenses: [{expression: "MIT OR Apache-2.0"}]}'
} | jq -s . >/parts.json
