#!/usr/bin/env bash
# From a fresh clone to pictures: installs pdgen in .venv, lets the shipped model paint held-out prompts, scores them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
venv ''

.venv/bin/python -m pdgen.sample --checkpoint=shapes --heldout=2 --out=out/quickstart

cat <<'EOT'

What to run next:
  .venv/bin/python -m pdgen.sample --checkpoint=shapes --prompt='a photo of a red ring above a blue square'
  .venv/bin/python -m pdgen.sample --help                                      mode, seed, guidance, ...
  .venv/bin/python -m pdgen.evaluate geneval --checkpoint=shapes --per_task=20 the score, with intervals
  .venv/bin/python -m pdgen.train --config=configs/shapes.py --workdir=out/shapes     train that model from nothing
  bash launch/test.sh                                                          every check of the project
EOT
