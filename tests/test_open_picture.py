"""images.open_picture: pictures of every kind as they are meant to be seen, or an error that says what is wrong."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pdgen.data import images

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, [5, 7, 3], dtype=np.uint8)


def encoded(image, kind='PNG', **options):
  file = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_lossless_formats_come_back_exactly(tmp_path, kind):
  content = encoded(RGB, kind, **({'lossless': True} if kind == 'WEBP' else {}))
  (tmp_path / 'a').write_bytes(content)
  for source in (content, tmp_path / 'a', str(tmp_path / 'a')):
    got = images.open_picture(source)
    np.testing.assert_array_equal(got, RGB)
    assert got.dtype == np.uint8 and got.flags.writeable


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(orientation):
  seen = np.zeros([16, 32, 3], np.uint8)
  seen[:8, :8] = 255  # The top left corner is white.
  stored = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
  }
  exif = Image.Exif()
  exif[0x0112] = orientation
  content = encoded(np.ascontiguousarray(stored[orientation](seen)), exif=exif)
  np.testing.assert_array_equal(images.open_picture(content), seen)


def test_transparency_is_laid_on_white():
  alpha = np.array([[0, 255, 128]], np.uint8)
  rgba = np.dstack([np.full([1, 3, 3], 100, np.uint8), alpha])
  got = images.open_picture(encoded(rgba))
  assert got[0, 0].tolist() == [255] * 3 and got[0, 1].tolist() == [100] * 3
  assert abs(int(got[0, 2, 0]) - (100 * 128 + 255 * 127) / 255) <= 1
  grey = Image.merge('LA', [Image.fromarray(np.full([1, 3], 100, np.uint8)), Image.fromarray(alpha)])
  np.testing.assert_array_equal(images.open_picture(encoded(grey)), got)
  palette = Image.new('P', (2, 1))
  palette.putpalette([10, 20, 30, 40, 50, 60])
  palette.putdata([0, 1])
  np.testing.assert_array_equal(images.open_picture(encoded(palette)), [[[10, 20, 30], [40, 50, 60]]])
  np.testing.assert_array_equal(
    images.open_picture(encoded(palette, transparency=1)), [[[10, 20, 30], [255, 255, 255]]]
  )
  keyed = encoded(RGB, transparency=tuple(RGB[0, 0].tolist()))  # A colour of an RGB picture that means transparent.
  np.testing.assert_array_equal(images.open_picture(keyed)[0, 0], [255] * 3)


def _png_of_16_bits(samples):
  """RGB of 16 bits, which Pillow does not write. samples: uint16[H, W, 3]."""

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  height, width, _ = samples.shape
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in samples)
  header = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def test_sixteen_bits_greys_and_cmyk():
  levels = np.array([[0, 257, 65535], [32768, 40000, 128]], np.uint16)
  want = np.repeat(np.round(levels / 257).astype(np.uint8)[:, :, None], 3, axis=2)
  for kind in ('PNG', 'TIFF'):
    np.testing.assert_array_equal(images.open_picture(encoded(levels, kind)), want)
  colours = images.open_picture(_png_of_16_bits(np.repeat(levels[:, :, None], 3, axis=2)))
  assert np.abs(colours.astype(int) - want).max() <= 1
  grey = RGB[:, :, 0]
  np.testing.assert_array_equal(images.open_picture(encoded(grey)), np.repeat(grey[:, :, None], 3, axis=2))
  bits = images.open_picture(encoded(Image.fromarray(grey > 99)))
  np.testing.assert_array_equal(bits[:, :, 0], np.where(grey > 99, 255, 0))
  red = Image.new('CMYK', (8, 8), (0, 255, 255, 0))
  assert np.abs(images.open_picture(encoded(red, 'JPEG', quality=100)).astype(int) - [255, 0, 0]).max() <= 3
  np.testing.assert_array_equal(images.open_picture(encoded(red, 'TIFF'))[0, 0], [255, 0, 0])


def test_any_aspect_ratio():
  for shape in ((1, 3000, 3), (3000, 1, 3), (1, 1, 3)):
    picture = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(images.open_picture(encoded(picture)), picture)


def test_what_cannot_be_read_says_why(tmp_path):
  png = encoded(RNG.integers(0, 256, [64, 64, 3], dtype=np.uint8))
  for content, message in {
    b'': 'The picture is empty',
    b'GIF89a': 'The picture cannot be decoded',
    b'hello': 'it is none of BMP',
    png[:200]: 'The picture cannot be decoded: .*truncated',
    png[:30]: 'cannot be decoded',
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n': 'it is none of BMP',  # Pillow would run Ghostscript.
    encoded(np.full([2, 2], 0.5, np.float32), 'TIFF'): 'mode F .* 16 bits',
    encoded(np.full([2, 2], 70000, np.int32), 'TIFF'): 'mode I .* 16 bits',
  }.items():
    with pytest.raises(ValueError, match=message) as caught:
      images.open_picture(content)
    assert '\n' not in str(caught.value)
  (tmp_path / 'a.png').write_bytes(png[:200])
  with pytest.raises(ValueError, match='a.png cannot be decoded'):
    images.open_picture(tmp_path / 'a.png')
  with pytest.raises(FileNotFoundError, match='b.png is no file'):
    images.open_picture(tmp_path / 'b.png')


def test_bombs_are_refused_before_they_inflate(monkeypatch, tmp_path):
  flat = encoded(np.zeros([100, 100, 3], np.uint8))
  with pytest.raises(ValueError, match='has 100 x 100 = 10000 pixels; it may have 9999'):
    images.open_picture(flat, max_pixels=9999)
  at = flat.index(b'IHDR') + 4
  header = struct.pack('>II', 60000, 60000) + flat[at + 8 : at + 13]
  huge = flat[:at] + header + struct.pack('>I', zlib.crc32(b'IHDR' + header)) + flat[at + 17 :]
  with pytest.raises(ValueError, match='pixels'):
    images.open_picture(huge)
  monkeypatch.setattr(images, 'MOST_BYTES', 10)
  (tmp_path / 'a.png').write_bytes(flat)
  with pytest.raises(ValueError, match='a.png has .* bytes; a picture may have 10'):
    images.open_picture(tmp_path / 'a.png')
