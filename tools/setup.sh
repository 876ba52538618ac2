#!/usr/bin/env bash
# Makes .venv hold this project (editable) with the versions of constraints.txt. Usage: tools/setup.sh [dev]
#
# Safe to run at any time: nothing is done where .venv/.ready says that all is in place; a .venv that an interrupted run
# left half-made, that is broken, or that was made for another folder is made anew. pip is called as it is configured.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-}
venv=$PWD/.venv
ready=$venv/.ready             # written last: the extra that is installed and the state of the files it came from
unfinished=$venv/.unfinished   # there while an installation is under way
PATH=${PATH//"$venv/bin:"/}    # an activated .venv must not be asked to rebuild itself
unset PYTHONHOME

main() {
    local sources
    sources=$(cat constraints.txt pyproject.toml tools/setup.sh | cksum)
    if ! usable; then
        make_venv
    elif [ "$(cat "$ready" 2>/dev/null)" = "dev $sources" ] || [ "$(cat "$ready" 2>/dev/null)" = "$extra $sources" ]; then
        return
    fi
    install
    echo "$extra $sources" > "$ready"
    rm "$unfinished"
}

usable() {
    [ -e "$venv" ] || return 1
    if [ -e "$unfinished" ]; then
        echo "An earlier installation did not finish: .venv is made anew."
    elif ! grep -qsF -- "$venv" "$venv/pyvenv.cfg"; then
        echo ".venv does not belong to this folder: it is made anew."
    elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "python or pip of .venv does not run: it is made anew."
    else
        return 0
    fi
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    rm -rf "$venv"
    mkdir "$venv"
    touch "$unfinished"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv "$venv"
}

find_python() {
    local python
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python
    fi
    for python in "$@"; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$python"
            return
        fi
    done
    echo "No Python 3.11 or newer with venv and pip was found; tried: $*." >&2
    echo "Install one (on Debian and Ubuntu also python3-venv), or name it: make demo PYTHON=/path/to/python3.12" >&2
    return 1
}

install() {
    touch "$unfinished"
    rm -f "$ready"
    local quiet=-q
    if [ -t 1 ]; then quiet=; fi
    echo "Installing torch (a large download the first time), then the project and what else it needs"
    # torch before all others and pinned: a resolver with an open range would take a build of several GB.
    pip install $quiet pip
    pip install $quiet torch
    pip install $quiet --build-constraint constraints.txt -e ".${extra:+[$extra]}"
}

pip() {
    local command=$1
    shift
    "$venv/bin/python" -m pip "$command" -c constraints.txt "$@"
}

main
