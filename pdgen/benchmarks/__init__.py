"""Benchmarks of one device at the sizes of a public model: what `pdgen.benchmark --suite=..` and the first look at a
new accelerator (`launch/accelerator_check.sh`) run.

A suite is a function from `Sizes` to rows, dicts of figures; it prints nothing. Random weights of the right shapes and
synthetic trajectories: speed does not depend on what they say.
"""

from collections.abc import Callable, Iterator

from pdgen.benchmarks import attention, flow, matmul, pipeline, quantization, reference, shapes, text, train
from pdgen.benchmarks.sizes import SIZES as SIZES
from pdgen.benchmarks.sizes import Sizes as Sizes

# A row is given out as soon as it is measured, so that a failure loses none.
Row = dict[str, object]
SUITES: dict[str, Callable[[Sizes], Iterator[Row]]] = {
  'matmul': matmul.run,
  'attention': attention.run,
  'train': train.run,
  'flow': flow.run,
  'text': text.run,
  'shapes_train': shapes.train,
  'shapes_sample': shapes.sample,
  'pipeline': pipeline.run,
  'quantization': quantization.run,
  'reference': reference.run,
}
