"""Page of an evaluation: every picture with its boxes, verdict and reason, to be filtered by task and verdict.

The page is one file beside the pictures that it shows; it loads them as they come into view and nothing from elsewhere.
"""

import collections
import dataclasses
import html
import pathlib
import urllib.parse
from collections.abc import Sequence

RIGHT, WRONG, PARTLY, UNSCORED = 'right', 'wrong', 'partly', 'unscored'
_ASSETS = pathlib.Path(__file__).parent
_HUES = (210, 20, 130, 280, 45, 330, 170, 95)  # of boxes, by class


@dataclasses.dataclass(frozen=True)
class Box:
  """What a detector found."""

  box: tuple[float, float, float, float]  # (x0, y0, x1, y1) in pixels
  label: str  # class and score


@dataclasses.dataclass(frozen=True)
class Card:
  """A picture and what was said of it."""

  picture: str | None  # file, relative to the page; None: there is none
  title: str  # its prompt
  task: str
  verdict: str  # RIGHT, WRONG, PARTLY or UNSCORED
  reason: str = ''
  boxes: tuple[Box, ...] = ()
  size: tuple[int, int] | None = None  # (width, height) of the picture; needed for boxes


@dataclasses.dataclass(frozen=True)
class Table:
  """Figures."""

  title: str
  head: tuple[str, ...]
  rows: Sequence[Sequence[str]]
  foreign: bool = False  # of others, not measured here: it looks different


def page(cards: Sequence[Card], *, title: str, tables: Sequence[Table] = (), notes: Sequence[str] = ()) -> str:
  """The document.

  Args:
    cards: in their order.
    title: of the page.
    tables: above the cards.
    notes: paragraphs under the title.
  """
  told = ''.join(f'<p>{_text(note)}</p>' for note in notes)
  style, script = ((_ASSETS / f'score_page.{kind}').read_text(encoding='utf-8') for kind in ('css', 'js'))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
    f'<header><h1>{_text(title)}</h1>{told}</header>\n{"".join(map(_table, tables))}\n'
    f'{_filters(cards) if cards else ""}<main>\n{"".join(map(_card, cards))}</main>\n<script>\n{script}</script>\n'
    '</body>\n</html>\n'
  )


def _table(table: Table) -> str:
  rows = ''.join(f'<tr>{"".join(f"<td>{_text(cell)}</td>" for cell in row)}</tr>' for row in table.rows)
  head = ''.join(f'<th>{_text(cell)}</th>' for cell in table.head)
  kind = ' class="foreign"' if table.foreign else ''
  return f'<section{kind}><h2>{_text(table.title)}</h2><table><tr>{head}</tr>{rows}</table></section>\n'


def _filters(cards: Sequence[Card]) -> str:
  def select(name: str, counts: collections.Counter[str]) -> str:
    options = ''.join(f'<option value="{_text(k)}">{_text(k)} ({n})</option>' for k, n in counts.items())
    return f'<label>{name} <select id="{name}"><option value="">all ({len(cards)})</option>{options}</select></label> '

  tasks, verdicts = (collections.Counter(getattr(card, name) for card in cards) for name in ('task', 'verdict'))
  return f'<form>{select("task", tasks)}{select("verdict", verdicts)}<output id="shown"></output></form>\n'


def _card(card: Card) -> str:
  picture = '<p class="none">no picture</p>'
  if card.picture is not None:
    size = f' width="{card.size[0]}" height="{card.size[1]}"' if card.size else ''
    source = _text(urllib.parse.quote(card.picture))
    picture = (
      f'<div class="frame"><img loading="lazy" alt="{_text(card.title)}" src="{source}"{size}>{_boxes(card)}</div>'
    )
  reason = f'<p class="reason">{_text(card.reason)}</p>' if card.reason else ''
  return (
    f'<article data-task="{_text(card.task)}" data-verdict="{_text(card.verdict)}" class="{_text(card.verdict)}">'
    f'{picture}<h3>{_text(card.title)}</h3>'
    f'<p class="chips"><b>{_text(card.verdict)}</b> {_text(card.task)}</p>{reason}</article>\n'
  )


def _boxes(card: Card) -> str:
  if not card.boxes or card.size is None:
    return ''
  width, height = card.size
  text = max(width, height) / 24
  classes = list(dict.fromkeys(box.label.rpartition(' ')[0] for box in card.boxes))
  drawn = ''
  for box in card.boxes:
    x0, y0, x1, y1 = box.box
    color = f'hsl({_HUES[classes.index(box.label.rpartition(" ")[0]) % len(_HUES)]} 90% 45%)'
    drawn += (
      f'<g stroke="{color}" fill="{color}">'
      f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>'
      f'<text x="{x0:.1f}" y="{max(y0, text):.1f}" font-size="{text:.1f}">{_text(box.label)}</text></g>'
    )
  return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{drawn}</svg>'


def _text(words: str) -> str:
  return html.escape(words)
