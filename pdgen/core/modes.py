"""Modes: what may be given, written and painted, each a row of one table. A study adds a mode by adding a row.

The prompt of a mode is texts and pictures in any order. What its row says is data of the sampler's rows
(`sampling.grammar`, `sampling.cycle.SampleBatch`), never of its program: requests of all modes share one.
"""

import dataclasses

from pdgen.core import protocols

# What may come between two items of the sequence.
PAINT, WRITE, END = MOVES = ('paint', 'write', 'end')
# Formats of texts: plans and inspections, and what follows them (`sampling.grammar`); plain words; words and tags.
STEPS, WORDS, ANY = TEXTS = ('steps', 'words', 'any')
# Copies of a given picture, in this order: clean latents of the VAE, patches of the ViT.
CLEAN, VIT = COPIES = ('clean', 'vit')
# What guidance by texts drops: all texts since the last picture; the last given text and all that was written since.
SINCE_PICTURE, LAST_TEXT = ('since_picture', 'last_text')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
  """One row of the table.

  Attributes:
    name: as users give it.
    texts: one of TEXTS. With `steps` the three fields of moves are not read: the process has rules of its own.
    after_prompt, after_text, after_picture: MOVES that may follow.
    opening: field of `SequenceConfig` that holds the words right before the first given text; '': none.
    system: a text of its own before all that is given.
    copies: COPIES of a given picture. A model without ViT sees its clean latents in every mode.
    needs_picture: a prompt without a picture is refused.
    size_of_given: what is painted has the size of the last given picture, if there is one (BAGEL, QUIRKS 32).
    text_guidance_drops: SINCE_PICTURE (paper) or LAST_TEXT (BAGEL, QUIRKS 27).
    image_guidance_keeps_written: the branch without pictures has the texts that the model wrote, not the given ones
      alone (BAGEL leaves thoughts out of it, QUIRKS 27).
    protocol: what the texts decide, read on the host (`core.protocols`); None: the model's next token decides.
  """

  name: str
  texts: str = WORDS
  after_prompt: tuple[str, ...] = ()
  after_text: tuple[str, ...] = ()
  after_picture: tuple[str, ...] = (END,)
  opening: str = ''
  system: str = ''
  copies: tuple[str, ...] = COPIES
  needs_picture: bool = False
  size_of_given: bool = False
  text_guidance_drops: str = LAST_TEXT
  image_guidance_keeps_written: bool = True
  protocol: protocols.Protocol | None = None

  def __post_init__(self):
    known = {'texts': ((self.texts,), TEXTS), 'copies': (self.copies, COPIES)}
    known['text_guidance_drops'] = (self.text_guidance_drops,), (SINCE_PICTURE, LAST_TEXT)
    known |= {f'after_{place}': (moves, MOVES) for place, moves in zip(PLACES, self.moves, strict=True)}
    for field, (values, allowed) in known.items():
      if unknown := sorted(set(values) - set(allowed)):
        raise ValueError(f'Mode {self.name!r}: {field} has {unknown[0]!r}. Known: {list(allowed)}')
    if self.texts != STEPS and not self.after_prompt:
      raise ValueError(f'Mode {self.name!r}: nothing may follow the prompt (after_prompt).')
    if self.writes and self.texts != STEPS and not self.after_text:
      raise ValueError(f'Mode {self.name!r}: nothing may follow a text (after_text).')

  @property
  def moves(self) -> tuple[tuple[str, ...], ...]:
    """Of the PLACES, in order."""
    return self.after_prompt, self.after_text, self.after_picture

  @property
  def writes(self) -> bool:
    """Whether it has texts of the model."""
    return self.texts == STEPS or any(WRITE in moves for moves in self.moves)

  @property
  def paints(self) -> bool:
    """Whether it may paint."""
    return self.texts == STEPS or any(PAINT in moves for moves in self.moves)

  @property
  def always_paints(self) -> bool:
    """Whether every trajectory ends with a picture, whatever the model writes."""
    first = self.after_prompt == (PAINT,)
    return self.texts == STEPS or first or self.paints and END not in (*self.after_prompt, *self.after_text)

  @property
  def paints_once(self) -> bool:
    """Whether the first picture is the end."""
    return self.texts != STEPS and self.paints and self.after_picture == (END,)

  def call(self, move: str) -> 'Mode':
    """The row of one call of a mode with a protocol: one text, or one picture, of all that it is given.

    Args:
      move: WRITE, or PAINT, which sees what the protocol says.
    """
    assert self.protocol is not None
    name = f'{self.name}.{move}'
    if move == WRITE:
      ends = dict(after_prompt=(WRITE,), after_text=(END,))
      return dataclasses.replace(self, name=name, **ends, protocol=None)
    if self.protocol.sees == protocols.SOURCE:  # As BAGEL edits, and as it paints where there is no picture.
      return Mode(name=name, after_prompt=(PAINT,), size_of_given=True)
    ends = dict(after_prompt=(PAINT,), after_text=(END,), after_picture=(END,), copies=COPIES)
    return dataclasses.replace(self, name=name, **ends, protocol=None)


PLACES = ('prompt', 'text', 'picture')

# System prompts of the released inference code (BAGEL), to the letter.
_THINK_THEN = (
  'You should first think about the {} process in the mind and then {}. \nThe {} process is enclosed within '
)
_THINK_THEN += '<think> </think> tags, i.e. <think> {} process here </think> {} here'
THINK_AND_PAINT = _THINK_THEN.format('planning', 'generate the image', 'planning', 'planning', 'image')
THINK_AND_ANSWER = _THINK_THEN.format(
  'reasoning', 'provide the user with the answer', 'reasoning', 'reasoning', 'answer'
)

TABLE = {
  mode.name: mode
  for mode in (
    Mode(name='process', texts=STEPS, opening='opening', text_guidance_drops=SINCE_PICTURE),
    Mode(name='direct', after_prompt=(PAINT,), opening='direct_opening', text_guidance_drops=SINCE_PICTURE),
    Mode(name='edit', after_prompt=(PAINT,), needs_picture=True, size_of_given=True),
    Mode(name='answer', after_prompt=(WRITE,), after_text=(END,), copies=(VIT,)),
    Mode(
      name='think',
      after_prompt=(WRITE,),
      after_text=(PAINT,),
      system=THINK_AND_PAINT,
      size_of_given=True,
      image_guidance_keeps_written=False,
    ),
    Mode(name='think_answer', after_prompt=(WRITE,), after_text=(END,), system=THINK_AND_ANSWER, copies=(VIT,)),
    Mode(
      name='free',
      texts=ANY,
      after_prompt=(PAINT, WRITE),
      after_text=MOVES,
      after_picture=MOVES,
      text_guidance_drops=SINCE_PICTURE,
    ),
    Mode(
      name='umm_reflection',
      after_prompt=(PAINT,),
      after_text=(PAINT, END),
      after_picture=(WRITE,),
      system=protocols.UMM_REFLECTION_SYSTEM,
      size_of_given=True,
      protocol=protocols.TABLE['umm_reflection'],
    ),
    Mode(
      name='thinkmorph',
      after_prompt=(WRITE,),
      after_text=(PAINT, END),
      after_picture=(WRITE,),
      system=protocols.THINKMORPH_SYSTEM,
      size_of_given=True,
      image_guidance_keeps_written=False,
      protocol=protocols.TABLE['thinkmorph'],
    ),
    Mode(
      name='zebra_cot',
      after_prompt=(WRITE,),
      after_text=(PAINT, END),
      after_picture=(WRITE,),
      system=protocols.ZEBRA_COT_SYSTEM,
      copies=(VIT,),
      size_of_given=True,
      protocol=protocols.TABLE['zebra_cot'],
    ),
  )
}


# Those that paint a text, whatever the model writes: what can be scored and timed.
PAINTING = tuple(mode.name for mode in TABLE.values() if mode.always_paints and not mode.needs_picture)
# Of them, those that are one call of the compiled program.
IN_ONE_CALL = tuple(name for name in PAINTING if TABLE[name].protocol is None)


def of(name: str) -> Mode:
  """The row of that name, or of a call of it (`thinkmorph.write`). Raises: ValueError naming those that are known."""
  whole, _, move = name.partition('.')
  mode = TABLE.get(whole)
  if mode is None or move and (mode.protocol is None or move not in (WRITE, PAINT)):
    raise ValueError(f'Unknown mode {name!r}. Known: {list(TABLE)}')
  return mode.call(move) if move else mode


def is_call(name: str) -> bool:
  """Whether a name is that of one call of a mode with a protocol."""
  return '.' in name
