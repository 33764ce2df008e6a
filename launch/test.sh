#!/usr/bin/env bash
# Every check of the project: lint, format, types, tests and doctests. Does its own set-up in .venv; runs from any directory.
#
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/test_masks.py -k causal     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
venv '[test]'

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright
# A process for each core, four at most (each takes 3 GB): most of the time goes into compiling, which is sequential.
.venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
