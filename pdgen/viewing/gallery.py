"""Trajectories to look at: a self-contained HTML page, a fragment for notebooks, a filmstrip of pictures for logs."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pdgen.core import modes, rounds, tags
from pdgen.core import trajectory as trajectory_lib
from pdgen.viewing import transcript

# Pictures up to this many pixels a side are enlarged without smoothing.
_PIXEL_ART = 64
_GIVEN = 512  # Pixels a side that are shown of a given picture.
STYLE = (pathlib.Path(__file__).parent / 'gallery.css').read_text()
# Bars under the pictures of a filmstrip.
_ACCEPTED, _REJECTED, _REFINED, _LAST = (43, 138, 62), (214, 51, 40), (59, 91, 219), (160, 160, 160)

Verdict = tuple[bool, str]


def page(
  trajectories: Sequence[trajectory_lib.Trajectory],
  *,
  title: str = 'pdgen',
  notes: str = '',
  verdicts: Sequence[Verdict | None] | None = None,
) -> str:
  """A self-contained HTML page: inline styles, pictures as data URLs, no links.

  Args:
    trajectories: shown in their order; partial ones are allowed.
    title: title of the page.
    notes: text under the title; a blank line starts a paragraph.
    verdicts: for each trajectory whether its final picture is right, and why; None: not judged.

  Returns: the document.
  """
  paragraphs = ''.join(f'<p>{text(p.strip())}</p>' for p in notes.split('\n\n') if p.strip())
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{text(title)}</title>\n<style>body{{margin:0}}\n{STYLE}</style>\n</head>\n<body class="pdgen">\n'
    f'<header class="top"><h1>{text(title)}</h1>{paragraphs}</header>\n'
    f'<main>{_articles(trajectories, verdicts)}</main>\n</body>\n</html>\n'
  )


def fragment(
  trajectories: Sequence[trajectory_lib.Trajectory], *, verdicts: Sequence[Verdict | None] | None = None
) -> str:
  """The trajectories with their style, to be embedded in another page (`IPython.display.HTML`). Arguments as `page`."""
  return f'<div class="pdgen"><style>{STYLE}</style>{_articles(trajectories, verdicts)}</div>'


def steps(trajectory: trajectory_lib.Trajectory) -> str:
  """The steps as a list, in HTML; '' for modes of one picture without words."""
  mode = modes.of(trajectory.mode)
  said = iter(rounds.of(trajectory))
  notes = [str(next(said)) if step.text is not None and mode.protocol else '' for step in trajectory.steps]
  shown = zip(trajectory.steps, notes, strict=True) if mode.writes else ()
  parts = ''.join(_step(number, *one) for number, one in enumerate(shown, 1))
  if parts and mode.texts == modes.STEPS and trajectory.stop == trajectory_lib.FINISHED:
    parts += '<li class="end">It looked at the last picture once more, and found it finished.</li>'
  return parts and f'<ol>{parts}</ol>'


def image(picture: np.ndarray, alt: str) -> str:
  """A picture, uint8[H, W, 3], as an `img` that holds its PNG."""
  data = base64.b64encode(png(picture)).decode()
  kind = ' class="pixels"' if max(picture.shape[:2]) <= _PIXEL_ART else ''
  return f'<img{kind} alt="{text(alt)}" src="data:image/png;base64,{data}">'


def text(words: str) -> str:
  r"""Words for HTML, safe in an element and in a quoted attribute; control characters are shown and not obeyed.

  >>> print(text('<b> & "\x00\u202e"'))
  &lt;b&gt; &amp; &quot;\x00\u202e&quot;
  """
  return html.escape(transcript.printable(words, keep='\n\t'))


def png(picture: np.ndarray, *, scale: int = 1) -> bytes:
  """Encodes uint8[H, W, 3] as PNG; every pixel becomes `scale` x `scale` pixels."""
  picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
  file = io.BytesIO()
  Image.fromarray(picture).save(file, format='png', optimize=True)
  return file.getvalue()


def filmstrip(trajectories: Sequence[trajectory_lib.Trajectory], *, scale: int = 2, gap: int = 4) -> np.ndarray:
  """One row of pictures a trajectory, left to right as painted: uint8[rows, columns, 3].

  The bar under a picture is green if its inspection accepts it, red if it rejects it, blue for a refined picture, grey
  if nothing was written about it.

  Args:
    trajectories: all pictures must have the same size.
    scale: pixels a side of each pixel.
    gap: pixels between pictures; the bars take half of them.

  Returns: uint8[rows, columns, 3].

  Raises: ValueError without any picture.
  """
  rows = [_bars(t) for t in trajectories]
  pictures = [picture for row in rows for picture, _ in row]
  if not pictures:
    raise ValueError('A filmstrip needs at least one picture; these trajectories hold none.')
  height, width = (side * scale for side in pictures[0].shape[:2])
  canvas = np.full((len(rows) * (height + 2 * gap), max(map(len, rows)) * (width + gap), 3), 255, np.uint8)
  for y, row in enumerate(rows):
    top = y * (height + 2 * gap)
    for x, (picture, color) in enumerate(row):
      left = x * (width + gap)
      canvas[top : top + height, left : left + width] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
      canvas[top + height : top + height + gap // 2, left : left + width] = color
  return canvas


def _bars(trajectory: trajectory_lib.Trajectory) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
  return [(item.picture, _bar(item)) for item in trajectory.items() if item.is_picture]


def _bar(item: trajectory_lib.Item) -> tuple[int, int, int]:
  if item.kind == trajectory_lib.REFINED:
    return _REFINED
  if item.step.inspection is None:
    return _LAST
  return _REJECTED if item.step.rejected else _ACCEPTED


def _articles(trajectories: Sequence[trajectory_lib.Trajectory], verdicts: Sequence[Verdict | None] | None) -> str:
  verdicts = [None] * len(trajectories) if verdicts is None else verdicts
  return '\n'.join(_article(t, v) for t, v in zip(trajectories, verdicts, strict=True))


def _article(trajectory: trajectory_lib.Trajectory, verdict: Verdict | None) -> str:
  chips = []
  if verdict is not None:
    right, reason = verdict
    chips.append(f'<li class="{"yes" if right else "no"}">{"✓" if right else "✗"} {text(reason)}</li>')
  if trajectory.spec is not None:
    chips.append(f'<li>{text(trajectory.spec.tag.replace("_", " "))}</li>')
  chips.append(f'<li>{text(transcript.stop(trajectory))}</li>')
  final = image(trajectory.final, f'Final picture of: {trajectory.prompt}') if trajectory.pictures else ''
  return (
    f'<article><div class="head">{final}<div><h2>{text(trajectory.prompt)}</h2>{_given(trajectory)}'
    f'<ul class="tags">{"".join(chips)}</ul></div></div>\n{steps(trajectory)}</article>'
  )


def _given(trajectory: trajectory_lib.Trajectory) -> str:
  """Pictures and texts of the prompt in their order, where it is more than one text; pictures at most _GIVEN a side."""
  cells = []
  for number, part in enumerate(trajectory.parts, 1):
    if isinstance(part, str):
      cells.append(f'<p>{text(part)}</p>')
      continue
    small = Image.fromarray(part)
    small.thumbnail((_GIVEN, _GIVEN))
    cells.append(image(np.asarray(small), f'Given picture, part {number} of the prompt'))
  return f'<div class="given">{"".join(cells)}</div>' if cells else ''


def _step(number: int, step: trajectory_lib.Step, note: str) -> str:
  cells = [] if step.plan is None else [f'<div class="plan">{_plan(f"Plan {number}", step.plan)}</div>']
  if step.text is not None:
    round_ = f', {text(note)}' if note else ''
    words = f'<p class="name">Text {number}{round_}</p><p class="does">{text(step.text)}</p>'
    cells.append(f'<div class="plan">{words}</div>')
  if step.draft is not None:
    state, name = ' rejected' if step.rejected else '', 'Sketch' if step.text is None else 'Picture'
    cells.append(_figure(f'sketch{state}', step.draft, f'{name} {number}'))
  if step.inspection is not None or step.corrected_plan is not None:
    again = f'<div class="again">{_plan("New plan", step.corrected_plan)}</div>' if step.corrected_plan else ''
    cells.append(f'<div class="inspect">{_inspection(step)}{again}</div>')
  if step.refined is not None:
    cells.append(_figure('refined', step.refined, f'Refined {number}'))
  return f'<li class="step{"" if step.refined is not None else " kept"}">{"".join(cells)}</li>'


def _plan(name: str, plan: str) -> str:
  try:
    instruction, description = tags.plan_parts(plan)
  except ValueError:  # written without the grammar: shown as it is
    return f'<p class="name">{name}</p><p class="does">{text(plan)}</p>'
  return f'<p class="name">{name}</p><p class="does">{text(instruction)}</p><p class="scene">{text(description)}</p>'


def _inspection(step: trajectory_lib.Step) -> str:
  if step.inspection is None:
    return ''
  # The tags go, the instruction stays, marked.
  before, *rest = map(text, tags.around_refine(step.inspection))
  shown = f'{before}<mark>{rest[0]}</mark>{rest[1]}' if rest else before
  state, name = ('wrong', 'Inspect: to be refined') if step.rejected else ('right', 'Inspect: kept')
  return f'<div class="verdict {state}"><p class="name">{name}</p><p>{shown}</p></div>'


def _figure(kind: str, picture: np.ndarray, caption: str) -> str:
  return f'<figure class="{kind}">{image(picture, caption)}<figcaption>{caption}</figcaption></figure>'
