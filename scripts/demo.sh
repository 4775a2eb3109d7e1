#!/usr/bin/env bash
# Runs npm's reference server in a microVM, in a home of its own, and times each step.
set -euo pipefail

casemate=$(realpath "${1:-target/release/casemate}")
home=$(mktemp -d "${TMPDIR:-/tmp}/casemate-demo.XXXXXX")
export CASEMATE_HOME=$home
names=() times=()

finish() {
    "$casemate" stop --all >/dev/null 2>&1 || true
    rm -rf "$home"
}
trap finish EXIT

step() { # TITLE COMMAND…
    local title=$1 begin end
    shift
    local words=()
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_:@/.=-]*) words+=("'$word'") ;; *) words+=("$word") ;; esac
    done
    if [ -t 1 ]; then printf '\n\033[1m$ casemate %s\033[0m\n' "${words[*]}"; else printf '\n$ casemate %s\n' "${words[*]}"; fi
    begin=$(date +%s%N)
    "$casemate" "$@"
    end=$(date +%s%N)
    names+=("$title") times+=($(((end - begin) / 1000000)))
}

step "fetch a guest kernel" kernel fetch
step "what this host can run" doctor
step "build the image" add everything npm:@modelcontextprotocol/server-everything
step "start the machine" launch everything
step "list its tools" tools everything
step "call echo" call everything echo '{"message":"hello from inside a microVM"}'
step "call get-sum" call everything get-sum '{"a":40,"b":2}'
step "status" status
step "stop the machine" stop everything

left=$(pgrep -f "$home" || true)
sockets=$(find "$home" -type s)
if [ -n "$left$sockets" ]; then
    echo "demo: left behind: $left $sockets" >&2
    exit 1
fi

total=0
printf '\n%-26s %10s\n' "step" "ms"
for i in "${!names[@]}"; do
    printf '%-26s %10d\n' "${names[$i]}" "${times[$i]}"
    total=$((total + times[i]))
done
printf '%-26s %10d\n' "together" "$total"
