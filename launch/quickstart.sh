#!/usr/bin/env bash
# From a fresh clone to pictures: installs pdgen in .venv, lets the shipped model paint held-out prompts, scores them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
venv ''

.venv/bin/python -m pdgen.sample --checkpoint=shapes --heldout=2 --out=out/quickstart

cat <<'EOT'

What to run next (after: source .venv/bin/activate)
  python -m pdgen.sample --prompt='a photo of a red ring and a blue square' --out=out/mine   a prompt of yours
  python -m pdgen.sample --help                                                              seed, guidance, ...
  python -m pdgen.evaluate geneval --per_task=20                                             the score
  python -m pdgen.train --config=configs/shapes.py --workdir=out/shapes                      train it from nothing
  bash launch/test.sh                                                                        every check
EOT
