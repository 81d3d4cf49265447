#!/bin/sh
# Starts the shop on a free port and asks it a few things.
set -eu
port=${PORT:-18080}
GREETING='Hello <you>' PORT=$port ./shop &
pid=$!
trap 'kill $pid 2>/dev/null || true' EXIT
ask() { curl -sS --retry 5 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port$1"; }
[ "$(ask /healthz)" = ok ]
ask / | grep -q 'Hello &lt;you&gt;'
[ "$(ask '/cart?price=199&count=3')" = '{"total_cents":597,"total":"5.97"}' ]
[ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/none")" = 404 ]
kill -TERM $pid
wait $pid
trap - EXIT
echo "all passed"
