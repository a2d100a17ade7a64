#!/usr/bin/env bash
# Three replicas behind nginx under constant load: a rolling restart, kill -9, a hung process, a full disk, a clock that
# jumps. Prints a table for each kind of call; fails if an answer is lost, wrong or given twice. Takes about three minutes,
# needs no root and cleans up whatever happens. $KINETOSCOPE names the binary; that of the release build if absent.
# Arguments are failure_drill.py's: `--help` for them.
#
# nginx, not Envoy, as Debian has it. It also helps less (it repeats no call that it has handed over, and notices a hung
# server only by waiting for it), so what passes here is the clients' and the server's doing.
set -euo pipefail
cd "$(dirname "$0")/.."
{ command -v ffmpeg && python3 -c 'import ensurepip'; } >/dev/null 2>&1 || ./scripts/install-deps.sh

kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/release/kinetoscope}")
[ -x "$kinetoscope" ] || { echo "$kinetoscope is missing: cargo build --release" >&2; exit 1; }

work=$(mktemp -d)
drill=
# All that the drill starts is in its process group, and its mount ends with the process that has it.
trap '[ -z "$drill" ] || kill -KILL -- "-$drill" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# Installed, Debian's package would start an nginx of its own.
mkdir "$work/packages"
(cd "$work/packages" && apt-get download -qq nginx libfaketime && for file in *.deb; do dpkg -x "$file" .; done) \
    2>/dev/null || true
nginx=$(command -v nginx || command -v /usr/sbin/nginx || echo "$work/packages/usr/sbin/nginx")
[ -x "$nginx" ] || { echo "SKIPPED: there is no nginx and no Debian package of it here"; exit 0; }
faketime=$(compgen -G "$work/packages/usr/lib/*/faketime/libfaketimeMT.so.1" || true)

python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check -c examples/python/requirements.txt \
    grpcio grpcio-tools grpcio-status==1.85.1; then
    echo "SKIPPED: the client's libraries can't be installed here"
    exit 0
fi
python="$work/venv/bin/python"
"$python" -m grpc_tools.protoc -I proto --python_out="$work" --grpc_python_out="$work" kinetoscope/v1/kinetoscope.proto

set -m
PYTHONPATH="$work" "$python" scripts/failure_drill.py --kinetoscope "$kinetoscope" --nginx "$nginx" \
    --libfaketime "$faketime" --work "$work" "$@" &
drill=$!
set +m
wait "$drill"
