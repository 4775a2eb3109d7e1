#!/usr/bin/env bash
# Measures the main job and its floor in one run. Raw data: bench-results/<time>/runs.jsonl; table on stdout.
set -euo pipefail

casemate=$(realpath "${1:-target/release/casemate}")
rounds=${ROUNDS:-7}
out=bench-results/$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$out"
runs=$(realpath "$out")/runs.jsonl
CASEMATE_HOME=$(mktemp -d "${TMPDIR:-/tmp}/casemate-bench.XXXXXX")
export CASEMATE_HOME
trap '"$casemate" stop --all >/dev/null 2>&1 || true; rm -rf "$CASEMATE_HOME"' EXIT

now() { date +%s%N; }
record() { # NAME NANOSECONDS
    printf '{"name":"%s","ms":%d.%03d}\n' "$1" $(($2 / 1000000)) $(($2 / 1000 % 1000)) >>"$runs"
}
timed() { # NAME COMMAND…
    local name=$1 begin
    shift
    begin=$(now)
    "$@" >/dev/null 2>&1
    record "$name" $(($(now) - begin))
}

"$casemate" kernel fetch >/dev/null 2>&1
"$casemate" doctor >/dev/null 2>&1 || true
"$casemate" add everything npm:@modelcontextprotocol/server-everything >/dev/null 2>&1

for _ in $(seq "$rounds"); do
    "$casemate" test --json >>"$out/test.jsonl" 2>/dev/null
    timed "everything: launch, cold" "$casemate" launch everything
    timed "everything: call on a running machine" "$casemate" call everything echo '{"message":"hi"}'
    "$casemate" status --json >>"$out/status.jsonl"
    timed "everything: stop" "$casemate" stop everything
    timed "everything: call, cold, machine of its own" "$casemate" call everything echo '{"message":"hi"}'
done

{
    echo "machine: $(nproc) cores, $(awk '/MemTotal/ {printf "%d GiB", $2 / 1048576}' /proc/meminfo)"
    echo "host kernel: $(uname -r)"
    echo "QEMU: $(qemu-system-x86_64 --version | head -n 1)"
    echo "commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "rounds: $rounds"
} | tee "$out/environment.txt"

# Median and spread of each name; the columns of `test --json` count as names.
{
    cat "$runs"
    sed -E 's/[{}" ]//g' "$out/test.jsonl" | tr ',' '\n' |
        awk -F: '/_ms(_p50|_p99)?:[0-9.]+$/ {printf "{\"name\":\"test: %s\",\"ms\":%s}\n", $1, $2}'
} | sed -E 's/^\{"name":"(.*)","ms":([0-9.]+)\}$/\1\t\2/' | sort -t$'\t' -k1,1 -k2,2n |
    awk -F'\t' '
        function flush() { if (n) printf "%-46s %10.1f %10.1f %10.1f\n", name, v[int((n + 1) / 2)], v[1], v[n] }
        BEGIN { printf "\n%-46s %10s %10s %10s\n", "milliseconds", "median", "least", "most" }
        $1 != name { flush(); name = $1; n = 0 }
        { v[++n] = $2 }
        END { flush() }'
echo
echo "raw data: $out"
