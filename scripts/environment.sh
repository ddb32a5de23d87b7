# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses the virtual environment and leaves its interpreter in $python.
#
#   PYTHON=python3.12     interpreter to make it with (default: python3)
#   VENV=/some/place      where it is (default: .venv in the repository)

[ -n "${repository:-}" ] || { echo "error: source scripts/environment.sh after setting \$repository" >&2; exit 2; }

fail() {
  echo "error: $*" >&2
  exit 2
}

venv="${VENV:-$repository/.venv}"
python="$venv/bin/python"
case "$(uname -s)" in MINGW* | MSYS* | CYGWIN*) python="$venv/Scripts/python.exe" ;; esac
base_python="${PYTHON:-python3}"

if [ ! -x "$python" ]; then
  command -v "$base_python" >/dev/null 2>&1 || fail "$base_python is not on PATH; install Python 3.11 or newer, or set PYTHON=…"
  "$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$base_python is $("$base_python" -V 2>&1), but 3.11 or newer is needed; set PYTHON=python3.11 or the like"
  "$base_python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$base_python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
fi

# The stamp says which requirements were installed whole: an interrupted install is taken up again.
stamp="$venv/.requirements-installed"
wanted="$(cat "$repository/requirements.txt" "$repository/pyproject.toml" | cksum) $repository"
if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  mkdir -p "$venv"
  free_kib="$(df -Pk "$venv" | awk 'NR == 2 {print $4}')"
  needed_gib=4
  [ "$free_kib" -ge $((needed_gib * 1024 * 1024)) ] ||
    fail "$venv has $((free_kib / 1024 / 1024)) GiB free, but the requirements need $needed_gib GiB (more with CUDA); free some, or set VENV=/place/with/room"
  echo "Installing the requirements into $venv (a minute or two the first time)"
  [ -x "$python" ] || "$base_python" -m venv "$venv"
  # `-e .` in the file is relative to the current directory.
  (cd "$repository" && "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt) ||
    fail "installing requirements.txt failed; the lines above say why, and running this again takes it up where it stopped"
  printf '%s' "$wanted" >"$stamp"
fi
