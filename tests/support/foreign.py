"""Small files of the layouts that importers read, made in a folder; pictures are noise, known by their number."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def picture(number, side=16):
  return np.random.default_rng([7, number]).integers(0, 256, [side, side, 3], dtype=np.uint8)


def png(number, side=16):
  return encoded(picture(number, side))


def encoded(pixels, kind='PNG', **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def cell(content):
  """A picture as the datasets library stores it."""
  return {'bytes': content, 'path': 'x.png'}


def write_parquet(path, rows, *, group=3):
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def thinkmorph(number, **changes):
  row = dict(
    pid=f'pid {number}',
    question=f'Where is ring {number}?',
    answer='left',
    problem_image_0=cell(png(10 * number)),
    resoning_thought_0='I mark it.',
    reasoning_image_0=cell(png(10 * number + 1)),
    resoning_thought_1='It is marked.',
    task='search',
    full_text_only_thought='no',
  )
  return {**row, **changes}


def zebra_cot(number, **changes):
  row = {
    'Question': f'Put piece {number} in. <image_start>[problem_image_1]<image_end> Where?',
    'Text Reasoning Trace': (
      'THOUGHT 0: Look. <image_start>[reasoning_image_1]<image_end><image_start>[reasoning_image_2]<image_end>\n'
      'THOUGHT 1: It fits.'
    ),
    'Final Answer': 'B',
    'problem_image_1': cell(png(10 * number)),
    'reasoning_image_1': cell(png(10 * number + 1)),
    'reasoning_image_2': cell(png(10 * number + 2)),
    'reasoning_image_3': None,
  }
  return {**row, **changes}


def math_canvas(number, **changes):
  def text(content):
    return dict(type='text', content=content, index=None)

  def image(index):
    return dict(type='image', content=None, index=index)

  row = dict(
    id=f'math {number}',
    question_interleave=[text(f'Triangle {number}:'), image(0), text('Find x.')],
    question_images=[cell(png(10 * number))],
    solution_interleave=[text('Draw the height.'), image(1), text('Then'), image(0), text('x = 3.')],
    solution_images=[cell(png(10 * number + 2)), cell(png(10 * number + 1))],
    answer='3',
    options='',
    knowledge='k',
    subknowledge='s',
  )
  return {**row, **changes}


def response(number, action, thinking, edit, *, inside=False):
  """A response of UMM-Reflection's controller; inside: with [EDIT] inside of <think>, as in the trajectory files."""
  field = f'[EDIT] {edit}'
  head = (
    f'<think>\n[CURRENT_ROUND] Round#{number}\n[SCORE] {number + 5}/10\n[ACTION] {action}\n[THINKING] {thinking}\n'
    f'[SOURCE_IMAGE] None\n'
  )
  return f'{head}{field}\n</think>' if inside else f'{head}</think>\n{field}'


def umm(number, *, edits=2, task='t2i', subtype='repair', inside=True, **changes):
  """edits: pictures painted; the responses are `t0`, `e0`, ..."""
  given = task == 'edit'
  thinks = [''] * given + [
    response(i, 'edit' if i < edits else 'done', f't{i}', f'e{i}' if i < edits else 'None', inside=inside)
    for i in range(edits + 1)
  ]
  shown = [png(10 * number + i) for i in range(edits + given)]
  row = dict(
    uid=f'uid {number}',
    task=task,
    trajectory_subtype=subtype,
    user_prompt=f'a photo of {number} rings',
    think_list=thinks,
    step_action_list=['none'] * given + ['edit'] * edits + ['done'],
    step_image_list=[*shown, None],
    meta_path='/x',
  )
  return {**row, **changes}


def gen_ref(number, **changes):
  """Members of a sample, by the rest of their names."""
  row = {
    'good_image.jpg': encoded(picture(10 * number + 1), 'JPEG'),
    'bad_image.jpg': encoded(picture(10 * number), 'JPEG'),
    'reflection.txt': f'Remove ring {number}.'.encode(),
    'prompt.txt': f'{number} rings'.encode(),
    'subset.txt': b'rule',
  }
  return {name: value for name, value in {**row, **changes}.items() if value is not None}


def write_tar(path, samples, *, mode='w', extra=()):
  """samples: {key: members}. extra: (TarInfo, content) at the end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, mode) as archive:
    for key, members in samples.items():
      for name, content in members.items():
        info = tarfile.TarInfo(f'{key}.{name}')
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    for info, content in extra:
      archive.addfile(info, None if content is None else io.BytesIO(content))


def jsonl_line(number, **changes):
  line = dict(
    prompt=f'{number} rings and a bar',
    steps=[
      dict(
        plan=dict(ins='Paint rings.', des=f'{number} rings.'),
        draft=f'pictures/{number}a.png',
        inspection='Wrong. <refine>Add one.</refine>',
        corrected_plan='<ins>Add one.</ins><des>Rings.</des>',
        refined=f'pictures/{number}b.png',
      ),
      dict(plan=dict(ins='Add a bar.', des='Rings, a bar.'), draft=f'pictures/{number}c.png', inspection='Correct.'),
    ],
    id=f'id {number}',
  )
  return {**line, **changes}


def write_jsonl(folder, lines, *, name='a.jsonl'):
  """lines: of dicts, or of bytes as they are. Pictures of 40 lines are there."""
  (folder / 'pictures').mkdir(parents=True, exist_ok=True)
  for number in range(40):
    for i, part in enumerate('abc'):
      path = folder / 'pictures' / f'{number}{part}.png'
      if not path.exists():
        path.write_bytes(png(10 * number + i))
  content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
  (folder / name).write_bytes(b'\n'.join(content) + b'\n')
