#!/usr/bin/env bash
# Builds casemate's own guest kernel, compares it with the distribution's, and runs the tests that boot
# guests on it. Takes some ten minutes on two processors; `make test` leaves it out.
set -euo pipefail

casemate=$(realpath "${1:-target/release/casemate}")
rounds=${ROUNDS:-7}
home=$(mktemp -d "${TMPDIR:-/tmp}/casemate-kernel.XXXXXX")
export CASEMATE_HOME=$home/own
# What was started is ended whatever failed before; that nothing runs, or that there is no such home, is no
# failure of the comparison, whose own status is kept.
trap 'for h in own distribution; do CASEMATE_HOME=$home/$h "$casemate" stop --all >/dev/null 2>&1 || true; done
    rm -rf "$home"' EXIT

CASEMATE_HOME=$home/distribution "$casemate" kernel fetch
time "$casemate" kernel build
time "$casemate" kernel build # finds it built
"$casemate" kernel list

# Taken in turns, so that a busy host is unfair to neither; the first of each only warms the disk.
for round in $(seq 0 "$rounds"); do
    for kernel in distribution own; do
        ms=$(CASEMATE_HOME=$home/$kernel "$casemate" --quiet test --json | sed -n 's/.*"launch_ms": \([0-9.]*\).*/\1/p' | head -n 1)
        [ "$round" = 0 ] || echo "$kernel $ms"
    done
done | sort -k1,1 -k2,2n | awk '
    function flush() { if (n) printf "%-14s %8.0f ms median, %.0f to %.0f\n", name, v[int((n + 1) / 2)], v[1], v[n] }
    $1 != name { flush(); name = $1; n = 0 }
    { v[++n] = $2 }
    END { flush() }'

CASEMATE_TEST_KERNELS=$CASEMATE_HOME/kernels "${CARGO:-cargo}" nextest run --locked -p casemate \
    -E 'test(/^(guide|servers|links|run|faults)::/)'
