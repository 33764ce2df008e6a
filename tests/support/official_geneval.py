"""GenEval's official evaluation as it behaves, written for tests from a reading of its code and apart from pdgen's.

It works as the original does, on one array of boxes a class (x0, y0, x1, y1, score) and one list of masks a class.
"""

import numpy as np
from PIL import Image

COLORS = ['red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white']


def crops(picture, objects):
  """What is shown to CLIP: of (box, mask) pairs."""
  image = Image.fromarray(picture)
  grey = Image.new('RGB', image.size, color='#999')
  shown = []
  for box, mask in objects:
    whole = image if mask is None else Image.composite(image, grey, Image.fromarray(mask))
    shown.append(np.asarray(whole.crop(tuple(box[:4].tolist()))))
  return shown


def iou(a, b):
  def area(box):
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

  both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
  either = area(a) + area(b) - both
  return both / either if either else 0


def position(a, b, share):
  """Relations of box a to box b: sorted, where the original has a set, whose order differs between runs of Python."""
  ends = np.stack([a[:4], b[:4]]).reshape(2, 2, 2)  # box, corner, axis
  away = ends[0].mean(axis=0) - ends[1].mean(axis=0)
  slack = share * np.abs(ends[:, 1] - ends[:, 0]).sum(axis=0)
  left = np.sign(away) * np.clip(np.abs(away) - slack, 0, None)
  if (np.abs(left) < 1e-3).all():
    return []
  x, y = left / np.sqrt((away**2).sum())
  return [n for n, far in (('above', -y), ('below', y), ('left of', -x), ('right of', x)) if far > 0.5]


def kept(boxes, masks, tag, *, threshold=0.3, counting=0.9, most=16, overlap=1.0):
  """Objects of each class that count: boxes and masks are dicts by class."""
  detected = {}
  for name, array in boxes.items():
    # The original's sort is not stable: its order of equal scores differs between processors.
    order = np.argsort(array[:, 4], kind='stable')[::-1]
    order = order[array[order, 4] > (counting if tag == 'counting' else threshold)]
    order = order[:most].tolist()
    chosen = []
    while order:
      top = order.pop(0)
      chosen.append((array[top], masks[name][top]))
      order = [other for other in order if overlap == 1 or iou(array[top], array[other]) < overlap]
    if chosen:
      detected[name] = chosen
  return detected


def evaluate(picture, objects, metadata, classify, *, position_threshold=0.1):
  """(correct, reason). classify: crops and class -> indices of colours."""
  reasons, groups = [], []
  for clause in metadata.get('include', []):
    found = objects.get(clause['class'], [])[: clause['count']]
    wrong = _wrong(picture, clause, found, groups, classify, position_threshold)
    reasons += wrong
    groups.append(None if wrong else found)
  for clause in metadata.get('exclude', []):
    count = len(objects.get(clause['class'], []))
    if count >= clause['count']:
      reasons.append(f'expected {clause["class"]}<{clause["count"]}, found {count}')
  return not reasons, '\n'.join(reasons)


def _wrong(picture, clause, found, groups, classify, share):
  name, wanted, color = clause['class'], clause['count'], clause.get('color')
  if len(found) < wanted:
    return [f'expected {name}>={wanted}, found {len(found)}']
  if color is not None:
    words = [COLORS[i] for i in classify(crops(picture, found), name)]
    if words.count(color) < wanted:
      told = ', '.join(f'{words.count(c)} {c}' for c in COLORS if c in words)
      return [f'expected {color} {name}>={wanted}, found {words.count(color)} {color}; and {told}']
  if 'position' in clause:
    relation, target = clause['position']
    if groups[target] is None:
      return [f'no target for {name} to be {relation}']
    for box, _ in found:
      for other, _ in groups[target]:
        there = position(box, other, share)
        if relation not in there:
          return [f'expected {name} {relation} target, found {" and ".join(there)} target']
  return []


def summary(rows):
  """What summary_scores.py prints."""
  prompts, tags = {}, {}
  for row in rows:
    prompts.setdefault(row['metadata'], []).append(row['correct'])
    tags.setdefault(row['tag'], []).append(row['correct'])
  right = [row['correct'] for row in rows]
  lines = [
    *('Summary', '=======', f'Total images: {len(rows)}', f'Total prompts: {len(prompts)}'),
    f'% correct images: {sum(right) / len(right):.2%}',
    f'% correct prompts: {sum(any(p) for p in prompts.values()) / len(prompts):.2%}',
    *('', 'Task breakdown', '=============='),
  ]
  means = []
  for tag, answers in tags.items():
    means.append(sum(answers) / len(answers))
    lines.append(f'{tag:<16} = {means[-1]:.2%} ({sum(answers)} / {len(answers)})')
  return '\n'.join([*lines, '', f'Overall score (avg. over tasks): {sum(means) / len(means):.5f}'])
