#!/bin/sh
# Writes what is in the image as CycloneDX 1.5: sbom.sh PARTS DPKG, of what collect.sh says the program is made of and the image's
# /var/lib/dpkg. Wants jq.
#
# Generators for crates know nothing of packages and those for images nothing of crates in a stripped program, and none knows
# the FFmpeg that is built here: cargo and dpkg do, and one document is easier to use than three to merge.
set -eu
parts=$1
dpkg=$2
. /etc/os-release
architecture=$(dpkg --print-architecture)

dpkg-query --admindir="$dpkg" -W -f '${Package}|${Version}|${Architecture}\n' |
    jq -R --arg distribution "$ID" --arg release "$ID-$VERSION_ID" 'split("|") as [$name, $version, $architecture] |
        {type: "library", name: $name, version: $version, purl: ("pkg:deb/\($distribution)/\($name | @uri)@\($version | @uri)" +
        "?arch=\($architecture)&distro=\($release)")}' |
    jq -s --slurpfile parts "$parts" --arg release "$ID-$VERSION_ID" --arg architecture "$architecture" '
        ($parts[0] | map(select(.name == "kinetoscope"))) as $program |
        ($parts[0] + . | map(select(.name != "kinetoscope")) | unique) as $rest |
        {bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
        metadata: {component: {type: "container", name: "kinetoscope", version: $program[0].version,
            description: "\($release), \($architecture)"}},
        components: ($program + $rest)}'
