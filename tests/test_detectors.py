"""Detectors of photographs: OpenCV's on a real graph that is made here, Mask2Former's arithmetic on hand-made answers.

cv2 comes with the test extra; torch and transformers (extra `geneval`) do not: a tiny Mask2Former and CLIP of random
weights run where they are installed.
"""

import json

import numpy as np
import pytest

from pdgen import judges
from pdgen.judges import base, coco, mask2former, opencv


def test_names_of_coco_are_those_of_geneval():
  assert len(coco.IDS) == 90 and len(set(coco.NAMES)) == 80
  ids = {'person': 1, 'stop sign': 13, 'bottle': 44, 'dining table': 67, 'tv remote': 75, 'toothbrush': 90}
  assert all(coco.IDS[number - 1] == name for name, number in ids.items())


def test_an_unknown_detector_is_named():
  with pytest.raises(ValueError, match=r"Unknown detector 'x'. Known: \['exact', 'mask2former', 'opencv'\]"):
    judges.detector('x')


def test_answers_of_an_ssd_become_objects():
  rows = [
    (0, 1, 0.9, 0.1, 0.2, 0.5, 0.6),  # person
    (0, 47, 0.95, -0.5, 0.0, 2.0, 1.0),  # cup, beyond the picture
    (0, 12, 0.9, 0.1, 0.1, 0.2, 0.2),  # an id without a class
    (0, 0, 0.9, 0.1, 0.1, 0.2, 0.2),  # background
    (0, 91, 0.9, 0.1, 0.1, 0.2, 0.2),  # beyond the last
    (0, 1, 0.0, 0.1, 0.1, 0.2, 0.2),  # the padding of an answer
    (0, 1, 0.8, 0.5, 0.5, 0.5, 0.9),  # no area
  ]
  found = opencv.objects(np.array(rows)[None, None], (100, 200), coco.IDS)
  assert found == [base.Found('cup', None, (0, 0, 200, 100), 0.95), base.Found('person', None, (20, 20, 100, 60), 0.9)]
  assert opencv.objects(np.array(rows[:1])[None, None], (10, 10), ('a', 'b'), first_class=0)[0].name == 'b'
  with pytest.raises(ValueError, match=r'answers \[1, 7\]'):
    opencv.objects(np.zeros((1, 7)), (10, 10), coco.IDS)


# --- a graph in ONNX's wire format: its answer is one object whose score is the mean of the red channel ---


def _varint(value):
  out = b''
  while True:
    value, low = value >> 7, value & 0x7F
    out += bytes([low | (0x80 if value else 0)])
    if not value:
      return out


def _field(number, value):
  if isinstance(value, int):
    return _varint(number << 3) + _varint(value)
  value = value.encode() if isinstance(value, str) else value
  return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name, values):
  values = np.asarray(values)
  kind = 1 if values.dtype == np.float32 else 7
  dims = b''.join(_field(1, int(side)) for side in values.shape)
  return dims + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _value(name, shape):
  dims = b''.join(_field(1, _field(1, side)) for side in shape)
  return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _node(kind, inputs, output):
  names = b''.join(_field(1, name) for name in inputs)
  return names + _field(2, output) + _field(3, f'node_{output}') + _field(4, kind)


def tiny_ssd(path, side):
  """An SSD of one object: a cup in the left half, as sure as the picture is red."""
  weight = np.zeros((7, 3, 1, 1), np.float32)
  weight[2, 0] = 1 / 255
  bias = np.array([0, 47, 0, 0, 0.25, 0.5, 0.75], np.float32)
  nodes = [
    _node('GlobalAveragePool', ['image'], 'mean'),
    _node('Conv', ['mean', 'weight', 'bias'], 'made'),
    _node('Reshape', ['made', 'shape'], 'objects'),
  ]
  tensors = [_tensor('weight', weight), _tensor('bias', bias), _tensor('shape', np.array([1, 1, 1, 7], np.int64))]
  graph = b''.join(_field(1, node) for node in nodes) + _field(2, 'tiny') + b''.join(_field(5, t) for t in tensors)
  graph += _field(11, _value('image', (1, 3, side, side))) + _field(12, _value('objects', (1, 1, 1, 7)))
  path.write_bytes(_field(1, 7) + _field(7, graph) + _field(8, _field(1, '') + _field(2, 13)))
  return path


def test_opencv_sees_with_a_graph(tmp_path):
  pytest.importorskip('cv2')
  graph = tiny_ssd(tmp_path / 'tiny.onnx', 8)
  detector = judges.detector('opencv', model=str(graph), size='8')
  picture = np.zeros((40, 80, 3), np.uint8)
  picture[..., 0] = 204  # red, as RGB: the blue channel would give a score of 0
  (cup,) = detector.detect(picture)
  assert (cup.name, cup.box) == ('cup', (0, 10, 40, 30)) and cup.score == pytest.approx(0.8, abs=1e-3)
  assert detector.colors(picture, [cup]) == ['red'] and detector.detect(picture[..., ::-1]) == []
  again = judges.detector('opencv', model=str(graph), size=8)
  assert again.identity == detector.identity != judges.detector('opencv', model=str(graph), size=16).identity
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(f'thing {n}' for n in range(50)))
  named = judges.detector('opencv', model=str(graph), size=8, names=str(names), first_class=0)
  assert named.detect(picture)[0].name == 'thing 47'
  with pytest.raises(ValueError, match='not uint8'):
    detector.detect(picture / 255)
  (tmp_path / 'broken.onnx').write_bytes(b'nothing')
  with pytest.raises(ValueError, match='broken.onnx is no graph that OpenCV reads'):
    judges.detector('opencv', model=str(tmp_path / 'broken.onnx'))


def test_without_opencv_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'cv2', None)
  with pytest.raises(ImportError, match=r"pip install 'pdgen\[opencv\]'"):
    judges.detector('opencv', model='x')
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  with pytest.raises(ImportError, match=r"pip install 'pdgen\[geneval\]'"):
    judges.detector('mask2former')


def test_answers_of_mask2former_become_objects():
  """mmdet's post-processing by hand: softmax without the last class, times the mean probability inside of the mask."""
  rng = np.random.default_rng(0)
  names = ['cup', 'dog', 'bus']
  classes, masks = rng.normal(size=(5, 4)) * 3, rng.normal(size=(5, 6, 9)) * 2
  masks[3] = -1  # no pixel
  found = mask2former.instances(classes, masks, names)
  shares = np.exp(classes) / np.exp(classes).sum(axis=1, keepdims=True)
  wanted = []
  for query in range(5):
    inside = masks[query] > 0
    if inside.any():
      rows, columns = np.nonzero(inside)
      sure = (1 / (1 + np.exp(-masks[query])))[inside].mean()
      box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
      wanted += [(names[c], box, shares[query, c] * sure, inside) for c in range(3)]
  wanted.sort(key=lambda item: -item[2])
  assert len(found) == len(wanted) == 12
  for item, (name, box, score, mask) in zip(found, wanted, strict=True):
    assert (item.name, item.box) == (name, box) and item.score == pytest.approx(score, abs=1e-5)
    assert item.mask is not None and np.array_equal(item.mask, mask)
  # At most a hundred pairs of query and class are objects, the likeliest.
  many = mask2former.instances(rng.normal(size=(60, 4)), np.ones((60, 2, 2)), names)
  assert len(many) == 100


def test_a_tiny_mask2former_and_clip_see_and_name_colors(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  sizes = dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4)
  backbone = transformers.SwinConfig(image_size=64, out_features=['stage1', 'stage2', 'stage3', 'stage4'], **sizes)
  config = transformers.Mask2FormerConfig(
    backbone_config=backbone,
    hidden_dim=32,
    feature_size=32,
    mask_feature_size=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    dim_feedforward=16,
    encoder_feedforward_dim=16,
    num_queries=7,
    id2label={0: 'cup', 1: 'remote'},
    label2id={'cup': 0, 'remote': 1},
  )
  model = transformers.Mask2FormerForUniversalSegmentation(config)
  model.save_pretrained(tmp_path / 'model')
  processor = {'image_processor_type': 'Mask2FormerImageProcessor', 'size': {'shortest_edge': 64, 'longest_edge': 96}}
  (tmp_path / 'model' / 'preprocessor_config.json').write_text(json.dumps({**processor, 'size_divisor': 32}))
  part = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
  words = ['<|startoftext|>', '<|endoftext|>', *map(chr, range(97, 123)), *(chr(c) + '</w>' for c in range(97, 123))]
  words += ['-', '-</w>']
  vocabulary = {word: number for number, word in enumerate(words)}
  (tmp_path / 'clip').mkdir()
  (tmp_path / 'clip' / 'vocab.json').write_text(json.dumps(vocabulary))
  (tmp_path / 'clip' / 'merges.txt').write_text('#version: 0.2\n')
  tokenizer = transformers.CLIPTokenizer(str(tmp_path / 'clip' / 'vocab.json'), str(tmp_path / 'clip' / 'merges.txt'))
  ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
  clip = transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config={**part, 'vocab_size': len(words), **ends},
      vision_config={**part, 'image_size': 32, 'patch_size': 16},
      projection_dim=8,
    )
  )
  clip.save_pretrained(tmp_path / 'clip')
  images = transformers.CLIPImageProcessor(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32})
  transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path / 'clip')
  detector = judges.detector('mask2former', model=str(tmp_path / 'model'), clip=str(tmp_path / 'clip'), device='cpu')
  picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
  found = detector.detect(picture)
  assert found and {item.name for item in found} <= {'cup', 'tv remote'}
  assert all(item.mask is not None and item.mask.shape == (40, 56) for item in found)
  assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
  assert set(detector.colors(picture, found[:3])) <= set(mask2former.COLORS) and detector.colors(picture, []) == []
  assert 'model' in detector.identity
