"""GenEval's detector through transformers: Mask2Former (Swin-S, COCO instances), CLIP ViT-L/14 for colours.

    judges.detector('mask2former')          # extra `geneval`: torch, transformers; weights from the Hugging Face hub

Same architecture, same post-processing (softmax, 100 best of queries and classes, score times mean mask probability,
box around the mask) and same zero-shot colours (three wordings, grey outside of the mask) as the official evaluation.
Not the same weights: that uses a Mask2Former that OpenMMLab trained again, which needs mmdet 2 and mmcv 1; these are
the authors' own. Verdicts may differ for single pictures; say which detector a figure is of.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pdgen.judges import base, coco, colors

DETECTOR = 'facebook/mask2former-swin-small-coco-instance'
CLIP = 'openai/clip-vit-large-patch14'
COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
_WORDINGS = ('a photo of a {color} {name}', 'a photo of a {color}-colored {name}', 'a photo of a {color} object')
_MOST_OBJECTS = 100  # of a picture (official, `max_per_image`)


def get(model: str = DETECTOR, clip: str = CLIP, *, device: str = '') -> 'Mask2Former':
  """The detector.

  Args:
    model: name or folder of a Mask2Former for instances of COCO's classes.
    clip: name or folder of a CLIP.
    device: torch's name; empty: a GPU if there is one.

  Raises: ImportError without torch and transformers; OSError where weights cannot be had.
  """
  try:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise ImportError("The detector `mask2former` needs torch and transformers: pip install 'pdgen[geneval]'") from None
  place = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
  return Mask2Former(
    network=transformers.Mask2FormerForUniversalSegmentation.from_pretrained(model).to(place).eval(),
    processor=transformers.AutoImageProcessor.from_pretrained(model),
    clip=transformers.CLIPModel.from_pretrained(clip).to(place).eval(),
    clip_processor=transformers.CLIPProcessor.from_pretrained(clip),
    identity=f'mask2former {model} {clip}',
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mask2Former:
  """Detector with masks, and namer of colours by CLIP."""

  network: Any  # transformers.Mask2FormerForUniversalSegmentation
  processor: Any  # its image processor
  clip: Any  # transformers.CLIPModel
  clip_processor: Any
  identity: str

  def detect(self, picture: np.ndarray) -> list[base.Found]:
    """Objects of uint8[H, W, 3] with masks, best first. Raises: ValueError for other pictures."""
    import torch  # pyright: ignore[reportMissingImports]

    base.check_picture(picture)
    inputs = self.processor(images=Image.fromarray(picture), return_tensors='pt').to(self.network.device)
    with torch.no_grad():
      answer = self.network(**inputs)
      # Masks are at a quarter of the padded input: enlarged, cut to what the picture fills, brought to its size.
      height, width = inputs['pixel_values'].shape[-2:]
      masks = _resized(answer.masks_queries_logits, (height, width))
      if (valid := inputs.get('pixel_mask')) is not None:
        rows, columns = (int(valid[0].any(dim=axis).sum()) for axis in (1, 0))
        masks = masks[..., :rows, :columns]
      masks = _resized(masks, picture.shape[:2])
    labels = self.network.config.id2label
    names = [coco.geneval_name(labels[i]) for i in range(len(labels))]
    return instances(answer.class_queries_logits[0].float().cpu().numpy(), masks[0].float().cpu().numpy(), names)

  def colors(self, picture: np.ndarray, objects: Sequence[base.Found]) -> list[str | None]:
    """The colour of each object by zero-shot classification of its crop."""
    import torch  # pyright: ignore[reportMissingImports]

    if not objects:
      return []
    crops = [Image.fromarray(crop) for crop in colors.crops(picture, objects)]
    pixels = self.clip_processor(images=crops, return_tensors='pt').to(self.clip.device)
    with torch.no_grad():
      features = _embedding(self.clip.get_image_features(**pixels)).float().cpu().numpy()
    named = [self._classifier(item.name or 'object') for item in objects]
    return [COLORS[int((classes @ feature).argmax())] for classes, feature in zip(named, features, strict=True)]

  @functools.cached_property
  def _classifiers(self) -> dict[str, np.ndarray]:
    return {}

  def _classifier(self, name: str) -> np.ndarray:
    """A unit vector a colour: the mean of the unit vectors of its wordings."""
    import torch  # pyright: ignore[reportMissingImports]

    if name not in self._classifiers:
      texts = [wording.format(color=color, name=name) for color in COLORS for wording in _WORDINGS]
      tokens = self.clip_processor(text=texts, return_tensors='pt', padding=True).to(self.clip.device)
      with torch.no_grad():
        vectors = _embedding(self.clip.get_text_features(**tokens)).float().cpu().numpy()
      vectors = _unit(_unit(vectors).reshape(len(COLORS), len(_WORDINGS), -1).mean(axis=1))
      self._classifiers[name] = vectors
    return self._classifiers[name]


def instances(class_logits: np.ndarray, mask_logits: np.ndarray, names: Sequence[str]) -> list[base.Found]:
  """The objects of Mask2Former's answer, best first (mmdet's `instance_postprocess`).

  Args:
    class_logits: [queries, classes + 1]; the last class is no object.
    mask_logits: [queries, H, W].
    names: of the classes.
  """
  exponents = np.exp(class_logits - class_logits.max(axis=1, keepdims=True))
  shares = (exponents / exponents.sum(axis=1, keepdims=True))[:, :-1]
  best = np.argsort(-shares.ravel(), kind='stable')[:_MOST_OBJECTS]
  masks = mask_logits > 0
  found = []
  for query, label in zip(*np.unravel_index(best, shares.shape), strict=True):
    mask = masks[query]
    if not mask.any():
      continue  # A box around nothing: mmdet keeps it with the box (0, 0, 0, 0) and the score 0.
    probabilities = 1 / (1 + np.exp(-mask_logits[query][mask].astype(np.float64)))
    score = float(shares[query, label]) * float(probabilities.sum() / (mask.sum() + 1e-6))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    found.append(base.Found(names[int(label)], None, box, score, mask))
  return sorted(found, key=lambda item: -item.score)


def _resized(masks: Any, size: tuple[int, int]) -> Any:
  import torch  # pyright: ignore[reportMissingImports]

  return torch.nn.functional.interpolate(masks, size=tuple(size), mode='bilinear', align_corners=False)


def _embedding(features: Any) -> Any:
  """The vectors of CLIP's answer: a tensor, or from transformers 5 an output that holds it."""
  return getattr(features, 'pooler_output', features)


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
