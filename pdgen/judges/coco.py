"""COCO's 80 classes under GenEval's names: three of them differ from COCO's own."""

# Of the 90 ids of COCO's annotations, id 1 first; None: an id without a class.
IDS: tuple[str | None, ...] = (
  *('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light'),
  *('fire hydrant', None, 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep'),
  *('cow', 'elephant', 'bear', 'zebra', 'giraffe', None, 'backpack', 'umbrella', None, None),
  *('handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat'),
  *('baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle', None, 'wine glass', 'cup', 'fork', 'knife'),
  *('spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot', 'hot dog', 'pizza'),
  *('donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', None, 'dining table', None, None),
  *('toilet', None, 'tv', 'laptop', 'computer mouse', 'tv remote', 'computer keyboard', 'cell phone', 'microwave'),
  *('oven', 'toaster', 'sink', 'refrigerator', None, 'book', 'clock', 'vase', 'scissors', 'teddy bear'),
  *('hair drier', 'toothbrush'),
)
NAMES: tuple[str, ...] = tuple(name for name in IDS if name is not None)

_RENAMED = {'mouse': 'computer mouse', 'remote': 'tv remote', 'keyboard': 'computer keyboard'}


def geneval_name(name: str) -> str:
  """GenEval's name of a class of COCO.

  >>> geneval_name('remote'), geneval_name('cup')
  ('tv remote', 'cup')
  """
  return _RENAMED.get(name, name)
