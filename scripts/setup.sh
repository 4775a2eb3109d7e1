#!/usr/bin/env bash
# Installs what is missing, and nothing else. Without root or sudo it says what it wants.
# With the argument "bench" also what `make bench` measures beside casemate.
set -euo pipefail

QEMU_OLDEST=8.2

missing=()
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing+=("$2")
}

qemu_is_new_enough() {
    local found
    found=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p')
    [ -n "$found" ] && [ "$(printf '%s\n' "$QEMU_OLDEST" "$found" | sort -V | head -n 1)" = "$QEMU_OLDEST" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

need mkfs.erofs erofs-utils
need mke2fs e2fsprogs
need cc gcc
need make make
need tmux tmux
need setpriv util-linux
# Runtimes and a static OpenSSL for tests of what clones draw; images bring their own.
need node nodejs
need python3 python3
# A repository for the server that reads one.
need git git
# A keyring to keep secrets in.
need secret-tool libsecret-tools
need gnome-keyring-daemon gnome-keyring
need dbus-run-session dbus
[ -e /usr/include/openssl/rand.h ] || missing+=(libssl-dev)
if [ "${1:-}" = bench ]; then
    need bwrap bubblewrap
    need runc runc
fi
qemu_is_new_enough || missing+=(qemu-system-x86)

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install: ${missing[*]} (QEMU $QEMU_OLDEST or later)" >&2
        exit 4
    fi
    if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        echo "setup: neither root nor sudo; please run as root:" >&2
        echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
        echo "  (QEMU $QEMU_OLDEST or later: on Debian 12 from bookworm-backports)" >&2
        exit 4
    fi
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    from=()
    if [ "$codename" = bookworm ] && [[ " ${missing[*]} " == *" qemu-system-x86 "* ]]; then
        if ! grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
            # The mirror is the one that this host uses already.
            mirror=$(grep -rhsE '^(URIs:|deb ).*debian/? ?' /etc/apt/sources.list /etc/apt/sources.list.d |
                grep -oE 'https?://[^ ]+/debian/?' | head -n 1)
            [ -n "$mirror" ] || { echo "setup: cannot find this host's Debian mirror in /etc/apt" >&2; exit 4; }
            printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' \
                "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg |
                as_root tee /etc/apt/sources.list.d/bookworm-backports.sources >/dev/null
        fi
        from=(-t bookworm-backports)
    fi
    echo "setup: installing ${missing[*]}"
    as_root apt-get update -qq
    for package in "${missing[@]}"; do
        options=()
        [ "$package" = qemu-system-x86 ] && options=("${from[@]}")
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${options[@]}" "$package" >/dev/null
    done
    qemu_is_new_enough || { echo "setup: QEMU is older than $QEMU_OLDEST" >&2; exit 4; }
fi

if ! command -v cargo >/dev/null; then
    echo "setup: please install a Rust toolchain (rustup), 1.95 or later" >&2
    exit 4
fi
# The vsock device is what a test of the links attaches its guest to; that version is known to work.
for tool in cargo-nextest cargo-deny vhost-device-vsock@0.3.0; do
    if ! command -v "${tool%@*}" >/dev/null; then
        echo "setup: building $tool"
        cargo install --quiet --locked "$tool"
    fi
done
