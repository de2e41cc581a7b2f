# Sourced by tools/demo, tools/test, tools/package, tools/benchmark and tools/zoo: the repository's own virtual environments.
#
# ensure_venv EXTRAS installs the repository with those extras, for example "recipes,test", into
# .venv and puts it first on PATH; ensure_venv EXTRAS oldest into .venv-oldest, in the lowest
# versions that setup.cfg allows. What is installed already costs nothing: installed-<extras> in
# the environment holds a hash of setup.cfg, pyproject.toml and the interpreter, and is written
# last, so that an interrupted or outdated installation is done again.

export CUDA_VISIBLE_DEVICES=-1
export TF_CPP_MIN_LOG_LEVEL=3
# Where it is set, every process compiles TensorFlow's modules anew, for 12 seconds of its 20.
unset PYTHONDONTWRITEBYTECODE

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "kerasq needs Python 3.11 or newer. Received: $(python3 --version 2>&1 || true)." \
    "Install python3.11 (with its venv module) and run this again." >&2
  return 1
}

stamp() {
  { echo "$1"; cat setup.cfg pyproject.toml; } | cksum
}

# The lower bounds of setup.cfg as pip's constraints: "numpy >=2.0, <3" is "numpy==2.0".
lowest() {
  sed -nE 's/^ +([a-z-]+) >=([0-9.]+),.*/\1==\2/p' setup.cfg | sort -u
}

ensure_venv() {
  local extras="$1" venv=".venv${2:+-$2}" name="${1//,/-}" constraints=/dev/null python what
  python="$(find_python)"
  if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/installed-$name" 2>/dev/null)" != "$(stamp "$python")" ]; then
    echo "Installing kerasq[$extras] into $venv (a few minutes, once)"
    rm -f "$venv/installed-$name"
    # An interrupted `venv` leaves a folder without pip.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    if [ "${2-}" = oldest ]; then
      constraints="$venv/lowest.txt"
      lowest >"$constraints"
    fi
    what=(install --quiet --constraint "$constraints" --editable ".[$extras]")
    # uv takes a quarter of pip's time; pip gets through where uv does not.
    "$venv/bin/python" -m pip install --quiet uv &&
      "$venv/bin/uv" pip "${what[@]}" --python "$venv/bin/python" --native-tls ||
      "$venv/bin/python" -m pip "${what[@]}"
    stamp "$python" >"$venv/installed-$name"
  fi
  export PATH="$PWD/$venv/bin:$PATH"
}
