# To be sourced: start_server KINETOSCOPE LOG [FLAG...] starts a server on a free port and sets `server`, its process, and
# `address`, where it listens.
start_server() {
    local kinetoscope=$1 log=$2
    shift 2
    # What an earlier server wrote is not this one's address.
    : >"$log"
    "$kinetoscope" serve --listen 127.0.0.1:0 --log-format json "$@" 2>"$log" &
    server=$!
    for _ in $(seq 100); do
        address=$(sed -n 's/.*"listening".*"address":"\([^"]*\)".*/\1/p' "$log")
        [ -z "$address" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "the server did not start:" >&2
    cat "$log" >&2
    exit 1
}
