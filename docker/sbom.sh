#!/bin/sh
# Writes what is in the image as CycloneDX 1.5: sbom.sh DPKG [CARGO_FLAG...], where DPKG is the image's /var/lib/dpkg.
#
# Generators for crates know nothing of packages and those for images nothing of crates in a stripped program, and none knows
# the FFmpeg that is built here: cargo and dpkg do, and one document is easier to use than three to merge.
set -eu
dpkg=$1
shift
. /etc/os-release
architecture=$(dpkg --print-architecture)

# Of crates only what is linked: neither macros nor what the build alone runs.
cargo tree --locked --edges normal,no-proc-macro --no-dedupe --prefix none --format '{p}|{l}' "$@" | sort -u |
    jq -R 'split("|") as [$crate, $licence] | ($crate | split(" ")) as [$name, $v] | $v[1:] as $version |
        {type: "library", name: $name, version: $version, purl: "pkg:cargo/\($name)@\($version | @uri)"} +
        if $licence == "" then {} else {licenses: [{expression: ($licence | gsub("/"; " OR "))}]} end' >/tmp/crates
dpkg-query --admindir="$dpkg" -W -f '${Package}|${Version}|${Architecture}\n' |
    jq -R --arg distribution "$ID" --arg release "$ID-$VERSION_ID" 'split("|") as [$name, $version, $architecture] |
        {type: "library", name: $name, version: $version, purl: ("pkg:deb/\($distribution)/\($name | @uri)@\($version | @uri)" +
        "?arch=\($architecture)&distro=\($release)")}' >/tmp/packages
: >/tmp/ffmpeg
if [ -f /usr/local/share/doc/ffmpeg/version ]; then
    jq -n --arg version "$(cat /usr/local/share/doc/ffmpeg/version)" --arg distribution "$ID" --arg release "$ID-$VERSION_ID" '
        {type: "library", name: "ffmpeg", version: $version, licenses: [{expression: "LGPL-2.1-or-later"}],
        description: "trimmed, built from the source package",
        purl: "pkg:deb/\($distribution)/ffmpeg@\($version | @uri)?arch=source&distro=\($release)"}' >/tmp/ffmpeg
fi
rustc --version | jq -R 'split(" ")[1] | {type: "library", name: "rust-std", version: .,
    licenses: [{expression: "MIT OR Apache-2.0"}]}' >/tmp/std
version=$(cargo tree --locked --depth 0 --prefix none --format '{p}' | cut -d' ' -f2)
jq -s --arg version "${version#v}" --arg release "$ID-$VERSION_ID" --arg architecture "$architecture" '
    (map(select(.name != "kinetoscope")) | unique) as $parts |
    {bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
    metadata: {component: {type: "container", name: "kinetoscope", version: $version,
        description: "\($release), \($architecture)"}},
    components: ([.[] | select(.name == "kinetoscope")] + $parts)}' /tmp/crates /tmp/packages /tmp/ffmpeg /tmp/std
