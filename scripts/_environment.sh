# Sourced by the scripts beside it: finds a Python, makes the virtual environment, installs.
# shellcheck shell=bash

# The checkout's root, whatever folder the script is called from.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# True for an interpreter that is new enough and able to make a virtual environment with pip
# (Debian's python3 without python3-venv is not).
usable_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the interpreter to make the environment with: $PYTHON if set, else the first that serves.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable_python "$PYTHON" ||
            fail "PYTHON=$PYTHON is not Python 3.11 or newer with the venv module; name another, or unset PYTHON"
        echo "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if usable_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    local found
    found=$(command -v python3 >/dev/null && python3 --version 2>&1) || found=absent
    fail "no Python 3.11 or newer with the venv module on the PATH (python3: $found);" \
        "install one (Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python $0"
}

# use_environment EXTRAS: puts an environment with this checkout (editable) and EXTRAS first on the
# PATH. The active environment if there is one, else .venv here. Installs only when pyproject.toml,
# the version or the interpreter changed since the last time, so that a second run starts at once.
use_environment() {
    local extras=$1 environment=${VIRTUAL_ENV:-}
    if [ -z "$environment" ]; then
        environment=$ROOT/.venv
        if ! usable_python "$environment/bin/python"; then
            local python
            python=$(find_python) || exit 1
            say "making a virtual environment in $environment with $("$python" --version)"
            "$python" -m venv --clear "$environment" ||
                fail "could not make $environment; see the message above"
        fi
    elif ! "$environment/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        fail "the active environment $environment has no Python 3.11 or newer; deactivate it, or activate another"
    fi
    export VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH
    export PIP_DISABLE_PIP_VERSION_CHECK=1

    local stamp=$environment/.rosler-${extras//,/-} state
    state=$(cd "$ROOT" && { pwd; python --version; cat pyproject.toml src/rosler_jax/_version.py; } | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ] || ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("rosler_jax") is None)'; then
        say "installing rosler-jax[$extras] (the first time takes a minute or two)"
        python -m pip install --quiet --editable "$ROOT[$extras]" ||
            fail "pip could not install rosler-jax[$extras]; see the message above"
        echo "$state" >"$stamp"
    fi
}
