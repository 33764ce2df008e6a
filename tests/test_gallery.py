"""The page holds everything that was painted and written, safely, and needs nothing from outside."""

import base64
import io
import json
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image
from support.html_tree import Tree

from pdgen.core import tags, trajectory
from pdgen.core.trajectory import PromptSpec, Step, Trajectory
from pdgen.viewing import gallery, report, transcript

PICTURES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(4)]
PLAN = '<ins>Add a {0}.</ins><des>A page with a {0}.</des>'


def process() -> Trajectory:
  return Trajectory(
    prompt='a red <ring> & a "pole"',
    steps=(
      Step(plan=PLAN.format('ring'), draft=PICTURES[0], inspection='The intermediate step is correct.'),
      Step(
        plan=PLAN.format('square'),
        draft=PICTURES[1],
        inspection='It is <b>wrong</b>: <refine> Remove the <square>. </refine> Really.',
        corrected_plan=PLAN.format('pole'),
        refined=PICTURES[2],
      ),
      Step(plan=PLAN.format('shadow'), draft=PICTURES[3]),
    ),
    spec=PromptSpec(tag='two_object'),
  )


DIRECT = Trajectory(prompt='a pole', steps=(Step(draft=PICTURES[0]),), mode='direct', stop='picture_cap')
PARTIAL = Trajectory(prompt='a bar', steps=(Step(plan=PLAN.format('bar')),), stop=None)


def test_the_page_needs_nothing_from_outside_and_is_well_formed():
  page = gallery.page([process(), DIRECT, PARTIAL], title='A <title>', notes='One.\n\nTwo & three.')
  tree = Tree(page)
  assert all(link.startswith('data:image/png;base64,') for link in tree.links)
  assert 'http' not in page and '@import' not in page and 'url(' not in page
  assert 'A <title>' in tree.text and '<p>Two &amp; three.</p>' in page


def test_every_picture_stands_in_the_page_pixel_by_pixel():
  images = Tree(gallery.page([process()])).images
  shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i['src'].partition(',')[2])))) for i in images]
  # The last picture stands twice: in the head and in its step.
  np.testing.assert_array_equal(shown, [PICTURES[3], *PICTURES])
  assert all(i['alt'] for i in images)
  assert all(i['class'] == 'pixels' for i in images)


def test_big_pictures_are_not_shown_as_pixels():
  big = Trajectory(prompt='big', steps=(Step(draft=np.zeros((65, 65, 3), np.uint8)),), mode='direct')
  assert 'class' not in Tree(gallery.page([big])).images[0]


def test_words_are_escaped_and_the_refinement_is_marked():
  page = gallery.page([process()])
  text = Tree(page).text
  assert 'a red <ring> & a "pole"' in text
  assert 'It is <b>wrong</b>: Remove the <square>. Really.' in text
  assert re.findall('<mark>(.*?)</mark>', page) == ['Remove the &lt;square&gt;.']
  assert '<b>' not in page and '<ring>' not in page
  for name in ('ring', 'square', 'pole', 'shadow'):
    assert f'Add a {name}.' in text and f'A page with a {name}.' in text


def test_verdicts_of_inspections_and_of_the_score_are_told_apart():
  classes = Tree(gallery.page([process()])).classes
  assert (classes.count('right'), classes.count('wrong'), classes.count('rejected')) == (1, 1, 1)
  assert 'yes' not in classes and 'no' not in classes
  scored = Tree(gallery.page([process(), DIRECT], verdicts=[(False, 'found 3 <poles>'), (True, 'matches')]))
  assert (scored.classes.count('yes'), scored.classes.count('no')) == (1, 1)
  assert '✗ found 3 <poles>' in scored.text and '✓ matches' in scored.text


def test_verdicts_must_be_as_many_as_the_trajectories():
  with pytest.raises(ValueError):
    gallery.page([process(), DIRECT], verdicts=[None])


def test_how_it_stopped_is_said():
  text = Tree(gallery.page([process(), DIRECT, PARTIAL])).text
  assert 'finished by itself after 4 pictures' in text
  assert 'stopped: as many pictures as allowed after 1 picture' in text
  assert 'to be continued after 0 pictures' in text
  assert text.count('found it finished') == 1


def test_every_way_to_stop_has_its_words():
  assert set(transcript.STOPS) == {*trajectory.STOPS, None}


def test_a_plan_written_without_the_grammar_is_shown_as_it_is():
  odd = Trajectory(prompt='odd', steps=(Step(plan='<ins>half', draft=PICTURES[0]),))
  assert '<ins>half' in Tree(gallery.page([odd])).text
  assert '<ins>half' in transcript.text(odd)


def test_the_fragment_is_the_same_articles():
  fragment = gallery.fragment([process()])
  Tree(fragment)
  assert re.search('<article>.*</article>', fragment, re.S)[0] in gallery.page([process()])


def test_the_strip_shows_each_picture_over_a_bar_that_says_what_became_of_it():
  strip = gallery.filmstrip([process(), DIRECT], scale=2, gap=4)
  assert strip.shape == (2 * (64 + 8), 4 * (64 + 4), 3) and strip.dtype == np.uint8
  for i, picture in enumerate(PICTURES):
    np.testing.assert_array_equal(strip[0:64:2, i * 68 : i * 68 + 64 : 2], picture)
  np.testing.assert_array_equal(strip[72:136, 68:], 255)  # DIRECT has one picture: nothing to its right
  kept, rejected, refined, last = (strip[64, i * 68].astype(int) for i in range(4))
  assert kept.argmax() == 1 and rejected.argmax() == 0 and refined.argmax() == 2 and np.ptp(last) == 0


HOSTILE = '\x1b]0;title\x07 \x1b[31m\x9b1m\x7f\u202e\u2028\x00 \r'


def test_what_reaches_a_terminal_holds_no_control_characters():
  step = Step(
    plan=HOSTILE, draft=PICTURES[0], inspection=f'<refine>{HOSTILE}</refine>', corrected_plan=PLAN.format(HOSTILE)
  )
  hostile = Trajectory(prompt=f'a ring{HOSTILE}', steps=(step,), stop='picture_cap')
  timings = dict(pictures=1, tokens=1, seconds=1.0, compile_calls=0)
  shown = [
    transcript.text(hostile, describe=lambda picture: HOSTILE),
    report.summary([hostile], [(False, HOSTILE)], timings=timings),
  ]
  for text in shown:
    assert not [c for c in text if c != '\n' and unicodedata.category(c) in ('Cc', 'Zl', 'Zp') or c == '\u202e']
    assert r'a ring\x1b]0;title\x07 \x1b[31m\x9b1m\x7f\u202e\u2028\x00 \x0d' in text.replace('\n         ', ' ')
  # What people write stays: other scripts, joined emoji, newlines of a paragraph.
  assert transcript.printable('環 हिन्दी 👩\u200d🎨 é') == '環 हिन्दी 👩\u200d🎨 é'
  assert transcript.printable('\ud800') == r'\ud800'


def test_tags_are_read_in_linear_time():
  """Each text would take hours if the rest of it were read anew at every tag."""
  many = 300_000
  for text in ('<refine>' + ' ' * many, '<refine>' * many, '<refine>' + ' <' * many, '<refine>a' * many):
    assert tags.refine_instruction(text) is None and tags.around_refine(text) == [text]
  instruction = tags.refine_instruction('<refine>' * many + '</refine>' * many)
  assert instruction == '<refine>' * (many - 1)
  for text in ('<ins>' + '</ins><des>' * many, '<ins>' * many + '</des>', '<ins>' + '</ins><des></des>' * many + ' '):
    with pytest.raises(ValueError, match='Not a plan'):
      tags.plan_parts(text)
  step = Step(plan='p', draft=PICTURES[0], inspection='<refine>' + ' ' * many)
  assert '<mark>' not in gallery.page([Trajectory(prompt='p', steps=(step,))])
  assert transcript.text(Trajectory(prompt='p', steps=(step,)))


def test_a_page_grows_by_batches_and_leaves_nothing_of_an_earlier_one(tmp_path):
  first = report.Folder(tmp_path, title='A')
  first.add([process(), DIRECT], [None, (True, 'right')])
  (tmp_path / 'pictures' / 'mine.png').write_bytes(b'kept')
  (tmp_path / 'notes.txt').write_text('kept')
  second = report.Folder(tmp_path, title='B')
  second.add([DIRECT], [None])
  assert {p.name for p in (tmp_path / 'pictures').iterdir()} == {'00000_1_draft.png', 'mine.png'}
  assert (tmp_path / 'notes.txt').is_file() and not list(tmp_path.rglob('*.partial'))
  page = second.add([process()], [(False, 'no')])
  told = json.loads((tmp_path / 'trajectories.json').read_text(encoding='utf-8'))
  assert [t['prompt'] for t in told] == [DIRECT.prompt, process().prompt]
  named = {step[part] for t in told for step in t['steps'] for part in ('draft', 'refined')} - {None}
  assert named | {'pictures/mine.png'} == {f'pictures/{p.name}' for p in (tmp_path / 'pictures').iterdir()}
  assert page == tmp_path / 'index.html' and page.read_text(encoding='utf-8').count('<article>') == 2


def test_a_strip_of_nothing_is_an_error():
  with pytest.raises(ValueError, match='at least one picture'):
    gallery.filmstrip([PARTIAL])


def test_the_transcript_says_everything_in_order():
  text = transcript.text(process(), describe=lambda picture: f'sum {picture.sum()}')
  wanted = [process().prompt, 'Add a ring.', 'picture 1: sum', 'is correct', 'Add a square.', 'picture 2', '<refine>']
  wanted += ['replan   Add a pole.', f'picture 3: sum {PICTURES[2].sum()}', 'Add a shadow.', 'picture 4', 'finished']
  places = [text.index(words) for words in wanted]
  assert places == sorted(places)
