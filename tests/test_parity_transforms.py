"""Resize rules and pixels of the reference's ImageTransform."""

import re

from support import golden_folder

from pdgen.data import images

# vae_1024_512_16: ImageTransform(1024, 512, 16); _px: with a pixel limit; _img3: for a sample of 3 pictures.
_NAME = re.compile(r'b_transforms/(?:vae|vit)_(\d+)_(\d+)_(\d+)(_px)?(?:_img(\d+))?')
_LIMIT = (
  14 * 14 * 2560
)  # pixels of the transform that the reference's data configs name, unless the README says another


@golden_folder.checks('b_transforms/vae_*', 'b_transforms/vit_*', inputs=('b_transforms/in_wh',))
def test_sizes():
  names = [name for name in golden_folder.matching('b_transforms/*') if _NAME.fullmatch(name)]
  assert names
  sizes = golden_folder.integers('b_transforms/in_wh')
  for name in names:
    *sides, limited, pictures = _NAME.fullmatch(name).groups()
    largest, smallest, stride = map(int, sides)
    options = dict(max_size=largest, min_size=smallest, stride=stride)
    if limited:
      listed = golden_folder.readme(rf'ImageTransform\({largest}, {smallest}, {stride}, (\d+)\)', _LIMIT)
      options['max_pixels'] = int(listed)
    transform = images.ImageTransform(**options)
    golden_folder.equal([transform.size(w, h, pictures=int(pictures or 1)) for w, h in sizes], name)


@golden_folder.checks('b_transforms/pil_out', inputs=('b_transforms/pil_in',))
def test_pixels():
  listed = golden_folder.readme(r'ImageTransform\(([\d, ]+)\): PIL', '64, 32, 16')
  largest, smallest, stride = map(int, listed.split(','))
  transform = images.ImageTransform(max_size=largest, min_size=smallest, stride=stride)
  golden_folder.close(transform(golden_folder.value('b_transforms/pil_in')).transpose(2, 0, 1), 'b_transforms/pil_out')
