"""A page read by html.parser, which checks that tags nest."""

import html.parser

VOID = ('img', 'meta', 'input')


class Tree(html.parser.HTMLParser):
  """Keeps every element with its attributes and text, the pictures, links, class names and all text that is seen."""

  def __init__(self, source: str):
    super().__init__()
    self.open, self.images, self.classes, self.text, self.links = [], [], [], '', []
    self.elements = []  # (tag, attributes, [text inside, of its children too])
    self._open_elements = []
    self.feed(source)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    self.classes += (values.get('class') or '').split()
    self.links += [v for k, v in attributes if k in ('src', 'href')]
    self.elements.append((tag, values, []))
    if tag == 'img':
      self.images.append(values)
    if tag not in VOID:
      self.open.append(tag)
      self._open_elements.append(self.elements[-1])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag
    self._open_elements.pop()

  def handle_data(self, data):
    if not {'style', 'script'} & set(self.open):
      self.text += data
    for _, _, inside in self._open_elements:
      inside.append(data)

  def of(self, tag, name=''):
    """(attributes, text) of the elements with that tag and class."""
    return [
      (values, ''.join(inside))
      for t, values, inside in self.elements
      if t == tag and (not name or name in (values.get('class') or '').split())
    ]
