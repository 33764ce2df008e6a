"""COCO detector on a CPU: any SSD-like graph that OpenCV reads (extra `opencv`), boxes without masks.

    judges.detector('opencv', model='frozen_inference_graph.pb', config='ssd_mobilenet_v2_coco.pbtxt')

The graph answers `[1, 1, N, 7]`: batch, class, score, and the box in shares of the picture's sides. Such detectors are
far weaker than GenEval's Mask2Former and surely wrong outside of COCO's classes: a cheetah is a bird to them. Their
scores compare checkpoints with each other, not with published figures.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdgen.judges import base, coco, colors


def get(
  model: str,
  config: str = '',
  *,
  size: int | str = 300,
  scale: float | str = 1.0,
  mean: float | str = 0.0,
  first_class: int | str = 1,
  names: str = '',
) -> 'OpenCV':
  """The detector of a graph. Numbers may be texts, as a command line has them.

  Args:
    model: file of the graph: .pb, .onnx, ..
    config: file that describes it, where its format needs one (.pbtxt).
    size: pixels a side of what it takes.
    scale: of the pixels, after the mean is subtracted.
    mean: of the pixels.
    first_class: its number of the first class.
    names: file of class names, one a line; empty: COCO's 90 ids.

  Raises: ImportError without OpenCV; FileNotFoundError; ValueError for what OpenCV cannot read.
  """
  try:
    import cv2  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise ImportError("The detector `opencv` needs opencv-python-headless: pip install 'pdgen[opencv]'") from None
  digest = hashlib.sha256()
  for file in filter(None, (model, config)):
    digest.update(pathlib.Path(file).read_bytes())
  try:
    net = cv2.dnn.readNet(model, config)
  except cv2.error as error:
    raise ValueError(f'{model} is no graph that OpenCV reads: {" ".join(str(error).split())[:200]}') from None
  lines = pathlib.Path(names).read_text(encoding='utf-8').splitlines() if names else None
  options: dict[str, Any] = dict(size=int(size), scale=float(scale), mean=float(mean), first_class=int(first_class))
  known = coco.IDS if lines is None else tuple(coco.geneval_name(line.strip()) for line in lines)
  told = f'opencv {digest.hexdigest()[:16]} {options} {hashlib.sha256(repr(known).encode()).hexdigest()[:8]}'
  return OpenCV(net, names=known, identity=told, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenCV:
  """Detector and namer of colours (by pixels)."""

  net: Any = dataclasses.field(kw_only=False)  # cv2.dnn.Net
  names: tuple[str | None, ...]  # of its classes
  identity: str  # files and options
  size: int = 300
  scale: float = 1.0
  mean: float = 0.0
  first_class: int = 1

  def detect(self, picture: np.ndarray) -> list[base.Found]:
    """Objects of uint8[H, W, 3], best first. Raises: ValueError for other pictures and other graphs."""
    import cv2  # pyright: ignore[reportMissingImports]

    base.check_picture(picture)
    # The picture is RGB already: OpenCV's own files are BGR, which swapRB is for.
    blob = cv2.dnn.blobFromImage(picture, self.scale, (self.size, self.size), (self.mean,) * 3, swapRB=False)
    self.net.setInput(blob)
    return objects(self.net.forward(), picture.shape[:2], self.names, first_class=self.first_class)

  def colors(self, picture: np.ndarray, objects: Sequence[base.Found]) -> list[str | None]:
    return colors.by_pixels(picture, objects)


def objects(
  output: np.ndarray, size: tuple[int, int], names: Sequence[str | None], *, first_class: int = 1
) -> list[base.Found]:
  """The objects of a network's answer, best first; those of unknown classes and without an area are none.

  Args:
    output: [1, 1, N, 7].
    size: (height, width) of the picture; boxes are clipped to it.
    names: of the classes.
    first_class: the network's number of the first of them.

  Raises: ValueError for an answer of another shape.
  """
  if output.ndim != 4 or output.shape[:2] != (1, 1) or output.shape[3] != 7:
    raise ValueError(
      f'The graph answers {list(output.shape)}, not [1, 1, N, 7]: it is no SSD with its post-processing.'
    )
  height, width = size
  found = []
  for _, number, score, *edges in output[0, 0].tolist():
    index = round(number) - first_class
    name = names[index] if 0 <= index < len(names) else None
    x0, y0, x1, y1 = (min(max(e * side, 0.0), side) for e, side in zip(edges, (width, height) * 2, strict=True))
    if name is not None and 0 < score <= 1 and x1 > x0 and y1 > y0:
      found.append(base.Found(name, None, (x0, y0, x1, y1), score))
  return sorted(found, key=lambda item: -item.score)
