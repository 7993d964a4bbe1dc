# shellcheck shell=bash
# Sourced: makes .venv from the exact pins where it is absent or out of date, then activates it.
#
#   . tools/env.sh              PYTHON names the interpreter to build .venv with (default: python3)
#
# With ENV_FOR=demo, as tools/demo.sh has it, the packages of the extras are left out, and without a GPU more; a later
# call without it brings them. .venv/.stamp holds what .venv was made from and is written last, so an interrupted
# install is done again.

_env_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

_env_fail() {
    printf 'error: %s\n' "$*" >&2
    return 1
}

# First line: Python version and place (an environment cannot be moved); second line: the pins.
_env_stamp() {
    "$1" -I -S -c '
import hashlib, sys
print("%d.%d" % sys.version_info[:2], sys.argv[1])
print(hashlib.sha256(open(sys.argv[1] + "/requirements.txt", "rb").read()).hexdigest())' "$_env_root" 2>/dev/null
}

_env_has_gpu() {
    [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || command -v nvidia-smi >/dev/null
}

# The marks of requirements.txt whose packages are left out: none, "dev", or "dev GPU".
_env_left_out() {
    [ "${ENV_FOR:-}" = demo ] || return 0
    if _env_has_gpu; then echo dev; else echo "dev GPU"; fi
}

_env_is_current() {
    local stamp lacks
    stamp=$(head -n 2 "$_env_root/.venv/.stamp" 2>/dev/null) || return 1
    [ "$stamp" = "$(_env_stamp "$_env_root/.venv/bin/python")" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$stamp" = "$(_env_stamp "$PYTHON")" ] || return 1
    lacks=$(tail -n +3 "$_env_root/.venv/.stamp")
    case "$(_env_left_out)" in "$lacks"*) ;; *) return 1 ;; esac
}

_env_check_python() {
    command -v "$1" >/dev/null || _env_fail "$1 not found: install Python >= 3.10, or name one with PYTHON=..." || return
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        _env_fail "$1 is $("$1" --version 2>&1), but Python >= 3.10 is needed: name one with PYTHON=..." || return
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        _env_fail "$1 cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

_env_make() {
    local venv=$_env_root/.venv python=${PYTHON:-} made_from stamp left_out marks size="2 GB to fetch, 6 GB on disk"
    local log=$venv/install.log pins=$venv/pins.txt
    made_from=$(head -n 1 "$venv/.stamp" 2>/dev/null)
    # Without PYTHON, an environment that is sound keeps the interpreter it was made with.
    if [ -z "$python" ]; then
        python=python3
        [ "$(_env_stamp "$venv/bin/python" | head -n 1)" != "${made_from:-none}" ] || python=$venv/bin/python
    fi
    _env_check_python "$python" || return
    stamp=$(_env_stamp "$python") || _env_fail "cannot read $_env_root/requirements.txt" || return
    left_out=$(_env_left_out)
    # With the same Python in the same place, pip only exchanges what changed, and what a user added stays.
    if [ "$made_from" = "$(head -n 1 <<<"$stamp")" ] && [ -x "$venv/bin/python" ]; then
        echo "bringing .venv up to date with requirements.txt" >&2
        rm "$venv/.stamp"
    else
        # venv would empty the folder behind a link, which may be another checkout's environment, and then fail.
        [ ! -L "$venv" ] || _env_fail "$venv is a link: remove it, and run this again to make an environment here" || return
        [ "$left_out" != "dev GPU" ] || size="4.3 GB on disk"
        echo "making .venv with $("$python" --version): $size, two minutes or more" >&2
        "$python" -m venv --clear "$venv" || _env_fail "could not make $venv" || return
    fi
    marks=${left_out// /|}
    grep -vE "# (${marks:-none})\$" "$_env_root/requirements.txt" >"$pins"
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps \
        -r "$pins" >"$log" 2>&1 ||
        _env_fail "pip could not install requirements.txt: $(grep -i 'error' "$log" | tail -n 1) (all of it: $log)" || return
    printf '%s\n' "$stamp" ${left_out:+"$left_out"} >"$venv/.stamp"
}

# Of runs that start together one installs and the others wait; a system without flock goes without.
_env_make_locked() {
    if command -v flock >/dev/null; then
        flock -n 9 || { echo "waiting for another run to make .venv" >&2 && flock 9; }
    fi
    _env_is_current || _env_make
} 9>"$_env_root/.venv.lock"

_env_is_current || _env_make_locked || return
# shellcheck source=/dev/null
. "$_env_root/.venv/bin/activate"
