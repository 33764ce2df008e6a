# shellcheck shell=bash
# Sourced by the scripts beside it, from the root of the repository.

# venv EXTRAS: a virtual environment in .venv with pdgen installed in place; EXTRAS is empty, `[test]` or the like.
# Installs again only when setup.cfg changed or the repository moved: the stamp records both.
venv() {
  local extras="$1" stamp python
  stamp=".venv/installed${extras//[^a-z,]/-}"
  if [ -x .venv/bin/python ] && { pwd && cat setup.cfg; } | cmp -s - "$stamp"; then
    return
  fi
  python="$(find_python)"
  echo "Setting up .venv with $("$python" --version): once, some minutes ..."
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  { pwd && cat setup.cfg; } >"$stamp"
}

# The first Python that is new enough; PYTHON in the environment names another.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo 'pdgen needs Python 3.11 or newer. Install one, or name it: PYTHON=/path/to/python3.11 bash launch/...' >&2
  return 1
}
