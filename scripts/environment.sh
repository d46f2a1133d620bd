# Sourced by scripts/quickstart and scripts/test: a virtual environment with the package and its tested pins.

fail() {
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

# The first Python of at least 3.11 that can make virtual environments; PYTHON=/path/to/python overrides.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.12 python3.13; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# make_environment EXTRAS: .venv with `-e .[EXTRAS]`; does nothing when pyproject.toml and constraints.txt are as at the last install.
make_environment() {
  local extras=$1 stamp=.venv/.installed-$1 wanted python
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || fail "no Python >= 3.11 with venv found. Install one, or name it: PYTHON=/path/to/python3.11 $0"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail "$python -m venv failed. Install the venv module of that Python."
  fi
  echo "installing asr-hf[$extras] into .venv (first time: about 5 GB, two minutes)"
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
    -c constraints.txt -e ".[$extras]" || fail "installation failed. Look at pip's message above; running again goes on."
  echo "$wanted" >"$stamp"
}
