#!/usr/bin/env bash
# The first look at an accelerator, in under nine minutes: does it compute what the reference does, and how fast is it?
#
#   bash launch/accelerator_check.sh [OUT]
#
# Runs core parity tests on the device (float32 and bfloat16) and every suite of pdgen.benchmark at the sizes of
# BAGEL-7B, each part by itself, so that what fails or takes too long leaves the rest; what time does not suffice for is
# reported so. OUT (out/accelerator_check) gets a JSON file and a log of each part and README.md, the tables. On a
# machine without an accelerator it runs tiny sizes on the CPU.
#
# It sets nothing up: it takes the python3 that is there (PYTHON names another), which must import jax and what pdgen
# needs. Without a network, carry the wheels that are missing and put them on PYTHONPATH:
#   python3 -m pip download --no-deps -d wheels flax optax orbax-checkpoint grain array-record ml-collections clu \
#     tensorboardX etils portpicker
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site
#
# In the environment: TOTAL, seconds of all (520); LIMIT, of a part (200); SUITES, which ones, in order (all); SIZE of
# the suites (auto); PARITY_TESTS, which tests (core ones; `none`); WORKERS, that compile them (8).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
# shellcheck source=launch/gpu_settings.sh
. launch/gpu_settings.sh

out="${1:-out/accelerator_check}"
python="${PYTHON:-python3}"
total="${TOTAL:-520}"
limit="${LIMIT:-200}"
tests="${PARITY_TESTS:-tests/test_parity_vae.py tests/test_parity_vit.py tests/test_parity_embeddings.py
  tests/test_parity_training.py}"
mkdir -p "$out" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
began=$SECONDS

platform="$("$python" -c 'import jax; print({"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()))')" || exit 2
echo "JAX runs on $platform."

if [ "$tests" != none ]; then
  # Hundreds of small programs: several processes compile them, and share the device. Interrupted, pytest still writes
  # what it has found.
  # shellcheck disable=SC2086
  PDGEN_TEST_PLATFORM="$platform" XLA_PYTHON_CLIENT_PREALLOCATE=false timeout -s INT -k 10 "$limit" \
    "$python" -m pytest -q -rf -p no:cacheprovider -W default --dist=load -n "${WORKERS:-8}" \
    --parity_json="$out/parity.json" $tests >"$out/parity.log" 2>&1
  echo "parity: status $?, $(grep -E ' (passed|failed)' "$out/parity.log" | tail -n 1)"
fi

"$python" -m pdgen.benchmark --suite="${SUITES:-all}" --size="${SIZE:-auto}" --out="$out" --limit="$limit" \
  --total=$((total > SECONDS - began ? total - SECONDS + began : 1))
status=$?
echo "$((SECONDS - began)) s in all"
exit $status
