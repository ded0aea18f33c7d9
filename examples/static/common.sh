# What the try.sh of all examples do; not a program of its own.
# Needs openssl 3, curl (with HTTP/2) and python3; EDGE_PROXY names the binary if
# it is not in the PATH or under target/.

for candidate in "${EDGE_PROXY:-}" ../../../target/release/edge-proxy ../../../target/debug/edge-proxy \
    "$(command -v edge-proxy || true)"; do
    [ -n "$candidate" ] && [ -x "$candidate" ] && proxy=$candidate && break
done
[ -n "${proxy:-}" ] || { echo "no edge-proxy: run 'cargo build -p edge-proxy', or set EDGE_PROXY" >&2; exit 1; }

logs=$(mktemp -d)
pids=
stop() {
    kill $pids 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$logs"
    pids=
}
trap stop EXIT
trap 'exit 1' INT TERM

# start NAME COMMAND...: in the background, until the script ends.
start() {
    name=$1
    shift
    "$@" > "$logs/$name" 2> "$logs/$name.err" & pids="$pids $!"
}

# until_up URL...: until each answers with success.
until_up() {
    tries=0
    for url in "$@"; do
        until curl -sf "$url" > /dev/null; do
            tries=$((tries + 1))
            [ $tries -lt 200 ] || { echo "$url does not answer" >&2; cat "$logs"/*.err >&2; exit 1; }
            sleep 0.1
        done
    done
}

# show COMMAND...: what is run, and what it prints.
show() {
    echo "\$ $*"
    "$@"
}

# One message to PORT by gRPC, as bytes: uncompressed, 5 long.
grpc() {
    echo "$ gRPC call echo.Echo/Say(hello) to 127.0.0.1:$1"
    printf '\000\000\000\000\005hello' | curl -sSf --http2-prior-knowledge -o "$logs/message" -D "$logs/head" \
        -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @- \
        "http://127.0.0.1:$1/echo.Echo/Say"
    tail -c 5 "$logs/message"
    echo " ($(grep -i '^grpc-status' "$logs/head" | tr -d '\r'))"
    grep -qi '^grpc-status: 0' "$logs/head"
}

# A line to PORT over TCP.
tcp() {
    echo "$ the line 'ping' over TCP to 127.0.0.1:$1"
    python3 -c '
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
client.sendall(b"ping\n")
client.shutdown(socket.SHUT_WR)
print(client.makefile().read(), end="")' "$1"
}
