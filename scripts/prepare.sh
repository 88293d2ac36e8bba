#!/bin/sh
# Sees to it that Python extensions can be built here, then makes the virtual environment.
#
#   scripts/prepare.sh venv DIR     python3 (3.11 or newer), venv, Python.h and a C compiler; then DIR
#   scripts/prepare.sh tools        the servers that some tests talk to, and valgrind; never fails
#
# What is missing is installed by apt where this is Debian or its kin and we are root. Otherwise the one line to
# run is printed. PYTHON selects the interpreter, CC the compiler.
set -eu

PYTHON=${PYTHON:-python3}
CC=${CC:-cc}
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

can_apt() { have apt-get && [ "$(id -u)" = 0 ]; }

apt_install() {
    # A package that is a server must not be started by being installed: the tests start their own.
    guard=/usr/sbin/policy-rc.d
    if [ -d /usr/sbin ] && [ ! -e "$guard" ]; then
        trap 'rm -f "$guard"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod +x "$guard"
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    status=0
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null || status=$?
    [ "$status" = 0 ] || tail -n 5 "$log" >&2
    rm -f "$log"
    return "$status"
}

python_is_new_enough() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# The honest question is not which package is there but whether a file that needs Python.h compiles.
can_compile() {
    probe=$(mktemp -d)
    printf '#include <Python.h>\nint main(void) { return PY_MAJOR_VERSION - 3; }\n' >"$probe/probe.c"
    include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    result=0
    "$CC" -I"$include" -c "$probe/probe.c" -o "$probe/probe.o" >/dev/null 2>&1 || result=1
    rm -rf "$probe"
    return "$result"
}

missing_packages() {
    have "$PYTHON" || { echo python3 python3-venv python3-dev gcc libc6-dev; return; }
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    can_compile || echo python3-dev gcc libc6-dev
}

venv() {
    missing=$(missing_packages | tr '\n' ' ')
    if [ -n "$missing" ]; then
        if can_apt; then
            say "installing $missing"
            # shellcheck disable=SC2086  # a list of words
            apt_install $missing || die "apt could not install: $missing"
            missing=$(missing_packages | tr '\n' ' ')
            [ -z "$missing" ] || die "$PYTHON still cannot build extensions here; it lacks what these packages give" \
                "Debian's own python3: $missing"
        elif have apt-get; then
            die "fastpush cannot be built yet. Run this, then try again:" "
    sudo apt-get update && sudo apt-get install -y $missing"
        else
            die "fastpush cannot be built yet. It needs Python 3.11 or newer with venv and Python.h, and a C compiler" \
                "(on Debian: $missing)."
        fi
    fi
    python_is_new_enough || die "fastpush needs Python 3.11 or newer; $PYTHON is $("$PYTHON" -V 2>&1)." \
        "Name another with: make PYTHON=python3.12 …"
    say "making $1 with $("$PYTHON" -V 2>&1)"
    "$PYTHON" -m venv --clear "$1"
}

tools() {
    missing=
    have nginx || missing="$missing nginx-light"
    have haproxy || missing="$missing haproxy"
    have nghttpd && have h2load || missing="$missing nghttp2"
    have node || missing="$missing nodejs"
    have chromium || missing="$missing chromium"
    have valgrind || missing="$missing valgrind"
    [ -n "$missing" ] || return 0
    if can_apt; then
        say "installing for the tests:$missing"
        apt_install $missing || say "not installed:$missing; the tests that need them are skipped"
    else
        say "the tests that need these Debian packages are skipped:$missing"
    fi
}

# The senders that the benchmarks compare with; one that cannot be had is left out there, with a line.
peers() {
    "$1/bin/python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' |
    while read -r wanted; do
        "$1/bin/python" -m pip --disable-pip-version-check --quiet install "$wanted" || say "not installed: $wanted"
    done
    have npm || { say "npm is not installed (on Debian: apt install npm); its senders are left out"; return 0; }
    # By itself npm tries a registry that it cannot reach for longer than anybody waits.
    npm install --silent --no-fund --no-audit --fetch-timeout=60000 --fetch-retries=1 --prefix "$1/peers" \
        @parse/node-apn apns2 >/dev/null ||
        say "not installed: @parse/node-apn, apns2"
}

case ${1:-} in
    venv) venv "${2:?the folder of the virtual environment}" ;;
    tools) tools ;;
    peers) peers "${2:?the folder of the virtual environment}" ;;
    *) die "usage: scripts/prepare.sh venv DIR | tools | peers DIR" ;;
esac
