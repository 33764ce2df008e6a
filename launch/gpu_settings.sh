# shellcheck shell=bash
# Sourced by the scripts for H100s: what XLA and NCCL are told.

# The budget that pdgen.compile reckons with; JAX would take 75 %.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.94
# Weights are gathered and gradients scattered while the layer before is computed.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
