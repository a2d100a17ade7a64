#!/usr/bin/env bash
# Runs the example clients against a server of the binary ($KINETOSCOPE, or the one that tests build) and compares their
# answers with the command line's, then Triton's perf_analyzer. Needs Python 3 with venv, ffmpeg, and package indices for the
# clients' libraries; says what it skips where one of them, Node, Go or Java is not there. Of C#, only that code can be made
# from the definitions is looked at.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
server=
trap 'kill ${server:-} 2>/dev/null || true; wait; rm -rf "$work"' EXIT

if [ -z "${KINETOSCOPE:-}" ]; then
    cargo build --workspace --features cuda --all-targets --quiet
fi
kinetoscope=$(realpath "${KINETOSCOPE:-${CARGO_TARGET_DIR:-target}/debug/kinetoscope}")

python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r examples/python/requirements.txt; then
    echo "SKIPPED: the clients' libraries can't be installed here"
    exit 0
fi
python="$work/venv/bin/python"
"$python" -m grpc_tools.protoc -I proto --python_out="$work" --grpc_python_out="$work" kinetoscope/v1/kinetoscope.proto

for i in 1 2 3; do
    ffmpeg -loglevel error -f lavfi -i "testsrc2=size=200x120:rate=25" -t "$i" -pix_fmt yuv420p "$work/$i.mp4"
done
videos=("$work"/[123].mp4)

. scripts/server.sh
start_server "$kinetoscope" "$work/log"

"$kinetoscope" classify "${videos[@]}" --json 2>/dev/null >"$work/expected"
check() {
    echo "== $*"
    PYTHONPATH="$work" NODE_PATH="$work/node/node_modules" "$@" --server "$address" "${videos[@]}" 2>"$work/errors" >"$work/actual" || { cat "$work/errors"; exit 1; }
    "$python" - "$work/expected" "$work/actual" <<'PYTHON'
import json, sys

def read(path):
    return {line["video"]: line["labels"] for line in map(json.loads, open(path))}

expected, actual = map(read, sys.argv[1:])
assert expected.keys() == actual.keys(), f"videos {sorted(actual)}"
for video in expected:
    for ours, theirs in zip(expected[video], actual[video], strict=True):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-5, (video, ours, theirs)
print(f"{len(expected)} answers are those of the command line")
PYTHON
}
check "$python" examples/python/classify.py
check "$python" examples/python/classify.py --stream
if PYTHONPATH="$work" "$python" examples/python/classify.py --server "$address" "$0" 2>"$work/errors"; then
    echo "a script is no video" >&2
    exit 1
fi
grep -F 'INVALID_ARGUMENT (NOT_A_VIDEO)' "$work/errors"
check "$python" examples/python/oip.py
check "$python" examples/python/oip.py --stream
check "$python" examples/python/reflect.py

if command -v npm >/dev/null; then
    cp -r examples/node "$work/node"
    if (cd "$work/node" && npm install --silent --no-audit --no-fund --no-package-lock); then
        check node "$work/node/classify.js" --proto proto
    else
        echo "SKIPPED: Node's libraries can't be installed here"
    fi
else
    echo "SKIPPED: there is no Node here"
fi

# Installs Debian packages where there are some. Says whether they are there.
have_packages() {
    dpkg-query -W "$@" >/dev/null 2>&1 && return
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null &&
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null 2>&1
}
protos=(kinetoscope/v1/kinetoscope.proto inference/grpc_service.proto)

# gRPC's package takes either version of the protobuf library; what protoc-gen-go makes needs the newer one.
if have_packages golang-go protobuf-compiler protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev \
    golang-github-golang-protobuf-1-5-dev golang-google-protobuf-dev; then
    mkdir -p "$work/go/src"
    protoc -I proto --go_out="$work/go/src" --go-grpc_out="$work/go/src" "${protos[@]}"
    # Debian has the libraries as a path of sources, not as modules.
    export GO111MODULE=off GOPATH="$work/go:/usr/share/gocode" GOCACHE="$work/go/cache" GOFLAGS=-p=2
    go build kinetoscope.v1/inference
    go build -o "$work/classify-go" examples/go/classify.go
    check "$work/classify-go"
else
    echo "SKIPPED: Go and its gRPC can't be installed here"
fi

if have_packages default-jdk-headless protobuf-compiler protobuf-compiler-grpc-java-plugin libgrpc-java libprotobuf-java \
    libgeronimo-annotation-1.3-spec-java libnetty-java libperfmark-java; then
    mkdir -p "$work/java" "$work/classes"
    protoc -I proto --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin --java_out="$work/java" --grpc-java_out="$work/java" "${protos[@]}"
    jars=$(printf '/usr/share/java/%s.jar:' grpc-{api,context,core,netty,protobuf,protobuf-lite,stub} protobuf guava \
        netty-{buffer,codec,codec-http,codec-http2,common,handler,handler-proxy,resolver,transport} \
        netty-transport-native-unix-common perfmark-api geronimo-annotation-1.3-spec)
    find "$work/java" examples/java -name '*.java' >"$work/java/files"
    javac -nowarn -cp "$jars" -d "$work/classes" "@$work/java/files"
    check java -cp "$work/classes:$jars" Classify
else
    echo "SKIPPED: Java and its gRPC can't be installed here"
fi

if have_packages protobuf-compiler; then
    mkdir "$work/csharp"
    protoc -I proto --csharp_out="$work/csharp" "${protos[@]}"
    grep -q 'namespace Kinetoscope.V1' "$work/csharp/Kinetoscope.cs"
fi
echo "SKIPPED: a client in C# (.NET and its gRPC are in no package index that this script asks)"

# The newest perf_analyzer that runs on Debian 12's glibc comes with this version. It wants two libraries beside it.
if "$work/venv/bin/pip" install --quiet --disable-pip-version-check --target "$work/perf" --no-deps \
    tritonclient==2.41.0 nvidia-cuda-runtime-cu12==12.9.79 &&
    (cd "$work/perf" && apt-get download -qq libb64-0d && dpkg -x libb64-0d_*.deb .); then
    "$python" - "${videos[0]}" >"$work/video.json" <<'PYTHON'
import base64, json, struct, sys

video = open(sys.argv[1], "rb").read()
print(json.dumps({"data": [{"VIDEO": {"b64": base64.b64encode(struct.pack("<I", len(video)) + video).decode()}}]}))
PYTHON
    "$python" -c 'import base64, json, os
clip = os.urandom(16 * 112 * 112 * 3)
print(json.dumps({"data": [{"CLIPS": {"b64": base64.b64encode(clip).decode(), "shape": [16, 112, 112, 3]}}]}))' >"$work/clips.json"
    model=$("$kinetoscope" inspect --json 2>/dev/null | "$python" -c 'import json, sys; print(json.load(sys.stdin)["name"])')
    analyze() {
        echo "== perf_analyzer $*"
        # Ten answers say that it works; a stable figure would take longer.
        LD_LIBRARY_PATH="$work/perf/nvidia/cuda_runtime/lib:$(dirname "$work"/perf/usr/lib/*/libb64.so.0d)" \
            "$work/perf/bin/perf_analyzer" -m "$model" -i grpc -u "$address" "$@" --measurement-mode count_windows \
            --measurement-request-count 10 --stability-percentage 999 >"$work/actual" 2>&1 || { cat "$work/actual"; exit 1; }
        grep -E 'Throughput: [0-9.]*[1-9]' "$work/actual" || { cat "$work/actual"; exit 1; }
    }
    analyze --input-data "$work/video.json" --concurrency-range 2
    analyze --input-data "$work/video.json" --concurrency-range 2 --streaming
    analyze --input-data "$work/clips.json" --concurrency-range 2 -b 4
else
    echo "SKIPPED: perf_analyzer can't be installed here"
fi
