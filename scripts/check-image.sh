#!/usr/bin/env bash
# Builds docker/cpu.Dockerfile where there is no Docker engine and no registry of images, and tries the image: Buildah builds
# (chroot isolation), Podman runs it with a read-only root, without capabilities, as the image's user and as PID 1.
#
#     scripts/check-image.sh [trimmed|distribution]
#
# Stand-ins for the public base images are made of what is here: debootstrap's Debian, and this machine's Rust toolchain. Answers
# are compared with those of $KINETOSCOPE, or of the program that tests build. Layers stay in $IMAGE_STORAGE
# (target/image-check): 20 GB, and 45 GB more while it builds, as the storage driver copies whole layers. A first run takes a quarter
# of an hour on two processors. Wants root and Debian's buildah, podman, runc, debootstrap, jq and ffmpeg.
set -euo pipefail
cd "$(dirname "$0")/.."
ffmpeg=${1:-trimmed}
storage=$(realpath -m "${IMAGE_STORAGE:-target/image-check}")
base=localhost/debian:bookworm-slim
rust=localhost/rust:slim-bookworm
image=localhost/kinetoscope:$ffmpeg
mkdir -p "$storage/tmp"
# Cache mounts are there as well.
export TMPDIR=$storage/tmp

for command in buildah podman runc debootstrap jq ffmpeg; do
    command -v $command >/dev/null || { echo "there is no $command here" >&2; exit 1; }
done
options=(--root "$storage/root" --runroot "$storage/run" --storage-driver "${STORAGE_DRIVER:-vfs}")
buildah() { command buildah "${options[@]}" "$@"; }
# Without systemd nothing checks the health from time to time, which Podman would report as an error each time.
podman() { command podman --log-level fatal "${options[@]}" --runtime runc --cgroup-manager cgroupfs "$@"; }

work=$(mktemp -d)
cleanup() {
    podman rm --force --time 1 kinetoscope-check >/dev/null 2>&1 || true
    buildah rm --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
rows=()
row() { rows+=("$(printf '%-48s %s' "$1" "$2")"); echo "ok  $1: $2"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

if ! podman image exists $base; then
    echo "== $base, by debootstrap"
    rm -rf "$storage/debian"
    debootstrap --variant=minbase bookworm "$storage/debian" >"$storage/debootstrap.log" ||
        { tail "$storage/debootstrap.log" >&2; exit 1; }
    rm -rf "$storage"/debian/var/cache/apt/* "$storage"/debian/var/lib/apt/lists/*
    # The real image names the security updates as well, and mirrors and certificates may be particular to this machine.
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        cp /etc/apt/sources.list.d/debian.sources "$storage/debian/etc/apt/sources.list.d/"
        rm -f "$storage/debian/etc/apt/sources.list"
    fi
    mkdir -p "$storage/debian/usr/local/share/ca-certificates"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$storage/debian/usr/local/share/ca-certificates/" \;
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$storage/debian" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$container"
    buildah commit --quiet --rm --format docker "$container" $base >/dev/null
    rm -rf "$storage/debian"
fi
if ! podman image exists $rust; then
    echo "== $rust, of $(rustc --version)"
    # Nothing but the toolchain: it is all that the Dockerfiles take of the real one.
    sysroot=$(rustc --print sysroot)
    mkdir -p "$work/rust/usr/local/cargo/bin" "$work/rust/usr/local/rustup/toolchain"
    cp -r "$sysroot/bin" "$sysroot/lib" "$work/rust/usr/local/rustup/toolchain/"
    ln -s ../../rustup/toolchain/bin/{cargo,rustc} "$work/rust/usr/local/cargo/bin/"
    for config in "${CARGO_HOME:-$HOME/.cargo}"/config{,.toml}; do
        [ ! -f "$config" ] || cp "$config" "$work/rust/usr/local/cargo/"
    done
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$work/rust" / >/dev/null
    buildah commit --quiet --rm --format docker "$container" $rust >/dev/null
fi

echo "== $image"
commit=$(git rev-parse --short=12 HEAD)
start=$SECONDS
buildah build --isolation chroot --format docker --layers --build-arg RUST_IMAGE=$rust --build-arg BASE_IMAGE=$base \
    --build-arg FFMPEG="$ffmpeg" --build-arg KINETOSCOPE_COMMIT="$commit" --file docker/cpu.Dockerfile --tag $image . \
    >"$storage/build.log" 2>&1 || { tail -n 40 "$storage/build.log" >&2; exit 1; }
row "build" "$((SECONDS - start)) s, $(grep -c 'Using cache' "$storage/build.log" || true) layers were there"

# Sizes of the files, as vfs keeps no differences.
declare -A megabytes
for name in $base $image; do
    mounted=$(podman image mount $name)
    megabytes[$name]=$(du --summarize --block-size=1 --apparent-size "$mounted" | awk '{print $1 / 1e6}')
    [ $name = $base ] || cp -r "$mounted/usr/share/doc/kinetoscope" "$work/doc"
    [ $name = $base ] || [ $ffmpeg = distribution ] || cp -r "$mounted/usr/share/doc/ffmpeg" "$work/ffmpeg"
    podman image unmount $name >/dev/null
done
beyond=$(awk "BEGIN {printf \"%.1f\", ${megabytes[$image]} - ${megabytes[$base]}}")
row "size beyond the base" "$beyond MB"
if [ "$ffmpeg" = trimmed ]; then
    awk "BEGIN {exit !($beyond < 100)}" || fail "the image is $beyond MB larger than its base"
    grep -q 'GNU LESSER GENERAL PUBLIC LICENSE' "$work/ffmpeg/COPYING.LGPLv2.1" || fail "the LGPL is not in the image"
    row "FFmpeg" "$(cat "$work/ffmpeg/version"), LGPL 2.1 or later"
fi

# What the image says of itself.
podman image inspect $image | jq '.[0] | .Config + {Healthcheck}' >"$work/config.json"
expect() {
    local got
    got=$(jq -c "$1" "$work/config.json")
    [ "$got" = "$2" ] || fail "$1 is $got, not $2"
}
expect .User '"65532:65532"'
expect .Entrypoint '["kinetoscope"]'
expect .Cmd '["serve"]'
expect '.ExposedPorts | keys | map(split("/")[0])' '["50051","9090"]'
expect .Healthcheck.Test '["CMD","kinetoscope","health"]'
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
expect '.Labels["org.opencontainers.image.version"]' "\"$version\""
expect '.Labels["org.opencontainers.image.revision"]' "\"$commit\""
row "user, ports, entry point, health check, labels" "as meant"

jq -e '[.components[].purl // ""] | map(startswith("pkg:deb/")) | (any and (all | not))' "$work/doc/sbom.cdx.json" >/dev/null
parts=$(jq -r '[.components[].purl // "" | sub("^pkg:(?<kind>[a-z]+)/.*"; "\(.kind)")] | group_by(.) |
    map(select(.[0] != "") | "\(length) \(.[0])") | join(", ")' "$work/doc/sbom.cdx.json")
if python3 -m venv "$work/venv" 2>/dev/null && "$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    'cyclonedx-python-lib[json-validation]==11.12.0'; then
    "$work/venv/bin/python" - "$work/doc/sbom.cdx.json" <<'END'
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
sys.exit(str(error) if error else 0)
END
    row "SBOM" "$parts; valid CycloneDX 1.5"
else
    row "SBOM" "$parts; NOT validated, as the validator can't be installed here"
fi

# As docs/deploying.md starts it. Podman would raise limits, which may be forbidden.
limits=(--ulimit nofile=1024:2048 --ulimit nproc=1024:2048)
hardened=(--read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges "${limits[@]}")
podman run --detach --name kinetoscope-check --network none "${hardened[@]}" $image >/dev/null 2>"$work/errors" ||
    { cat "$work/errors" >&2; fail "the container does not start"; }
for _ in $(seq 100); do
    health=$(podman exec kinetoscope-check kinetoscope health 2>&1) && break
    sleep 0.2
done
[ "$health" = serving ] || { podman logs kinetoscope-check >&2; fail "health: $health"; }
podman healthcheck run kinetoscope-check
row "kinetoscope health, HEALTHCHECK" "$health"
inside() { podman exec kinetoscope-check "$@"; }
[ "$(inside sh -c 'tr "\0" " " </proc/1/cmdline')" = "kinetoscope serve " ] || fail "the server is not PID 1"
[ "$(inside id -u)" = 65532 ] || fail "runs as $(inside id)"
! inside touch /x 2>/dev/null || fail "the root can be written"
inside grep -q '^CapEff:.0000000000000000$' /proc/1/status || fail "there are capabilities"
row "PID 1, user, root, capabilities, seccomp" \
    "kinetoscope, $(inside id -u), read-only, none, mode $(inside sed -n 's/^Seccomp:\t//p' /proc/1/status)"
inside kinetoscope --version | tr '\n' ' ' | sed 's/ *$//' >"$work/version"
grep -q "$commit" "$work/version" || fail "--version says $(cat "$work/version")"
row "kinetoscope --version" "$(cat "$work/version")"

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --quiet --bin kinetoscope
fi
kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/debug/kinetoscope}")
make() {
    ffmpeg -loglevel error -f lavfi -i mandelbrot=size=320x240:rate=25:end_scale=0.05:end_pts=100 \
        -f lavfi -i sine -t 2 -pix_fmt yuv420p "${@:2}" "$work/videos/$1"
}
mkdir "$work/videos"
make h264.mp4 -c:v libx264 -bf 2 -c:a aac
make h264.ts -c:v libx264 -c:a mp2
make h264.flv -c:v libx264 -c:a aac
make hevc.mkv -c:v libx265 -x265-params log-level=none -c:a ac3
make vp8.webm -c:v libvpx -deadline realtime -cpu-used 8 -c:a libopus
make vp9.webm -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libvorbis
make av1.mp4 -c:v libaom-av1 -cpu-used 8 -row-mt 1 -c:a aac
make mpeg4.avi -c:v mpeg4 -c:a libmp3lame
make mpeg2.mpg -c:v mpeg2video -c:a mp2
make wmv2.asf -c:v wmv2 -c:a wmav2
make prores.mov -c:v prores -c:a pcm_s16le
make ffv1.nut -c:v ffv1 -c:a flac
make theora.ogv -c:v libtheora -c:a libvorbis
make dnxhd.mxf -s 1920x1080 -c:v dnxhd -b:v 120M -c:a pcm_s16le -ar 48000
chmod -R a+rX "$work"
pid=$(podman inspect --format '{{.State.Pid}}' kinetoscope-check)
for video in "$work"/videos/*; do
    "$kinetoscope" classify "$video" --segments --json >"$work/direct" 2>"$work/errors" ||
        { cat "$work/errors" >&2; fail "$video"; }
    # A client outside of the image, in the network of the container.
    nsenter --net --target "$pid" "$kinetoscope" classify "$video" --server 127.0.0.1:50051 --segments --json \
        >"$work/served"
    diff "$work/direct" "$work/served" || fail "other answers for $video"
done
! podman logs kinetoscope-check 2>&1 | grep 'without some protections' || fail "decoder processes lack protections"
row "classified over gRPC, as without an image" "$(basename -a "$work"/videos/* | paste -sd' ')"

# A model baked in, and one mounted.
mkdir "$work/models"
cp weights/camera-motion/model.safetensors "$work/models/baked.safetensors"
printf '%s\n' "FROM $image" 'COPY baked.safetensors /models/' 'ENV KINETOSCOPE_MODEL=/models' >"$work/Dockerfile"
buildah build --quiet --isolation chroot --format docker --file "$work/Dockerfile" --tag "$image-baked" "$work/models" >/dev/null
alone=(podman run --rm --network none "${hardened[@]}")
"${alone[@]}" "$image-baked" serve --check >/dev/null
"${alone[@]}" --volume "$work/models:/mnt:ro" --env KINETOSCOPE_MODEL=/mnt $image serve --check >/dev/null
! "${alone[@]}" --env KINETOSCOPE_MODEL=/mnt $image serve --check 2>/dev/null || fail "serve --check finds a model that is not there"
row "models" "baked in, and mounted"

# The job's script, in a container beside the server's.
mkdir -m 777 "$work/batch"
(cd "$work/videos" && printf '/videos/%s\n' *) >"$work/batch/videos.txt"
for index in 0 1 2; do
    podman run --rm --network container:kinetoscope-check "${hardened[@]}" --entrypoint '["/bin/sh", "/scripts/classify-part.sh"]' \
        --volume "$PWD/deploy/batch:/scripts:ro" --volume "$work/batch:/batch" --volume "$work/videos:/videos:ro" \
        --env KINETOSCOPE_SERVER=http://127.0.0.1:50051 --env SHARDS=3 --env JOB_COMPLETION_INDEX=$index \
        --env MANIFEST=/batch/videos.txt --env ANSWERS=/batch/answers $image 2>"$work/errors" >/dev/null ||
        { cat "$work/errors" >&2; fail "part $index"; }
done
[ "$(cat "$work"/batch/answers/part-?.jsonl | jq -r .video | sort)" = "$(sort "$work/batch/videos.txt")" ] || fail "answers of the job"
row "deploy/batch, in three parts" "$(cat "$work"/batch/answers/part-?.jsonl | wc -l) answers"

start=$(date +%s%N)
podman stop --time 30 kinetoscope-check >/dev/null
took=$((($(date +%s%N) - start) / 1000000))
status=$(podman inspect --format '{{.State.ExitCode}}' kinetoscope-check)
podman logs kinetoscope-check >"$work/log" 2>&1
[ "$status" = 0 ] || { cat "$work/log" >&2; fail "ended with status $status"; }
row "SIGTERM to PID 1" "status $status after $took ms"

echo
printf '%s\n' "${rows[@]}"
