#!/usr/bin/env bash
# Makes .venv with everything the project needs and writes .venv/.ready; the Makefile calls it.
#
# uv does the work: the one on PATH if it is new enough, else one of our own in .uv/, installed with pip.
# Python is never downloaded. PYTHON=/path/to/python chooses one.
set -euo pipefail

readonly UV_MINIMUM=0.8.0

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
readonly root

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Prints the path of the first interpreter that is new enough: it is run, because a pyenv shim may exist and not work.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

describe_python() {
    command -v "${PYTHON:-python3}" >/dev/null 2>&1 || { printf 'no %s is on PATH' "${PYTHON:-python3}"; return; }
    printf '%s is %s' "${PYTHON:-python3}" "$("${PYTHON:-python3}" --version 2>&1 || true)"
}

# True if the uv named by $1 runs and is at least UV_MINIMUM. (sort -V is not on every macOS.)
new_enough() {
    "$1" --version 2>/dev/null | awk -v minimum="$UV_MINIMUM" '
        { split($2, have, "."); split(minimum, want, ".")
          for (i = 1; i <= 3; i++) if (have[i] + 0 != want[i] + 0) exit have[i] + 0 < want[i] + 0 }
        END { if (NR == 0) exit 1 }'
}

install_private_uv() {
    local python=$1
    printf 'setup: no uv %s or newer on PATH; installing one into .uv/\n' "$UV_MINIMUM" >&2
    rm -rf .uv
    if ! "$python" -m venv .uv >/dev/null 2>.uv.log; then
        cat .uv.log >&2
        rm -rf .uv .uv.log
        fail "$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv);" \
            "or install uv: https://docs.astral.sh/uv/"
    fi
    rm -f .uv.log
    .uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=$UV_MINIMUM" >&2 ||
        fail "pip could not install uv; is PyPI reachable from here?"
}

python=$(find_python) || python=
if [[ -n ${PYTHON:-} && -z $python ]]; then
    fail "Python 3.11 or newer is needed, but $(describe_python)"
fi
if command -v uv >/dev/null 2>&1 && new_enough uv; then
    uv=uv
elif [[ -z $python ]]; then
    fail "Python 3.11 or newer is needed, but $(describe_python);" \
        "install one, or name one: make PYTHON_BIN=/path/to/python3.11 setup"
else
    new_enough .uv/bin/uv || install_private_uv "$python"
    uv=.uv/bin/uv
fi

# A copied or moved tree: the environment's scripts and its link to backend/ still point at the old place.
if [[ -f .venv/.ready && $(<.venv/.ready) != "$root" ]]; then
    rm -rf .venv
fi

arguments=(--quiet)
if [[ -n ${PYTHON:-} ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    arguments+=(${python:+--python "$python"})
fi
unset VIRTUAL_ENV
export UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT="$root/.venv"
"$uv" sync "${arguments[@]}" ||
    fail "uv could not make .venv (above: why); Python 3.11 or newer and access to PyPI are needed"
printf '%s\n' "$root" >.venv/.ready
