#!/usr/bin/env bash
# Checks the page in web/: types, unit tests, that building it gives the bytes of web/dist, and the page itself in Chromium.
# With KINETOSCOPE, the program that tests have built, against its server too. Installs what it lacks. Needs Node 20 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
command -v ffmpeg >/dev/null || packages+=(ffmpeg)
[ -n "${CHROMIUM:-}" ] || command -v chromium >/dev/null || packages+=(chromium)
if [ ${#packages[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    echo "installing: ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
[ -z "${KINETOSCOPE:-}" ] || KINETOSCOPE=$(realpath "$KINETOSCOPE")
export KINETOSCOPE
CHROMIUM=${CHROMIUM:-$(command -v chromium)}
export CHROMIUM

built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
cd web
PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --silent --no-audit --no-fund

npm run --silent types
npm run --silent unit
npx vite build --logLevel warn --emptyOutDir --outDir "$built"
if ! diff -r dist "$built"; then
    echo "web/dist is not what web/ builds: run 'npm run build' in web/ and commit web/dist" >&2
    exit 1
fi
size=$(find dist -type f -exec sh -c 'gzip -9c "$1" | wc -c' sh {} \; | awk '{ sum += $1 } END { print sum }')
echo "the page takes $size bytes, compressed"
[ "$size" -lt 60000 ] || { echo "the page may take 60000 bytes at most" >&2; exit 1; }
npm run --silent e2e
