#!/usr/bin/env bash
# Runs every test with the given cargo, and counts those that could not run on this host.
set -euo pipefail

missing=$(mktemp)
trap 'rm -f "$missing"' EXIT
status=0
CASEMATE_TEST_MISSING=$missing "$@" nextest run --locked --workspace || status=$?
if [ -s "$missing" ]; then
    echo "$(sort -u "$missing" | wc -l) tests could not run here:"
    sort -u "$missing" | sed 's/^/  /'
else
    echo "every test could run here"
fi
exit "$status"
