"""Pictures: read from files of any kind; resized and normalised to [-1, 1] as BAGEL's VAE and ViT get them."""

import dataclasses
import io
import math
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pdgen.core import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
  """The reference's `ImageTransform`: bicubic resize, then (x / 255 - 0.5) / 0.5.

  Attributes:
    max_size: of the longer side, in pixels.
    min_size: of the shorter side; it wins over max_size before the sides are rounded.
    stride: both sides become multiples of it.
    max_pixels: of a picture, shared by the pictures of a sample.
  """

  max_size: int
  min_size: int
  stride: int
  max_pixels: int = 14 * 14 * 9 * 1024

  def size(self, width: int, height: int, *, pictures: int = 1) -> tuple[int, int]:
    """(width, height) of a picture after the resize. pictures: of its sample.

    Over the pixel limit the sides shrink by the ratio of the areas, not by its root: a bug of the reference that the
    token counts of every released model have been trained with (QUIRKS B4).

    >>> ImageTransform(max_size=980, min_size=378, stride=14, max_pixels=501760).size(980, 980)
    (518, 518)
    """
    scale = max(min(self.max_size / max(width, height), 1.0), self.min_size / min(width, height))
    width, height = self._scaled(width, height, scale)
    if width * height > self.max_pixels / pictures:
      width, height = self._scaled(width, height, self.max_pixels / pictures / (width * height))
    if max(width, height) > self.max_size:
      width, height = self._scaled(width, height, self.max_size / max(width, height))
    return width, height

  def resize(self, picture: np.ndarray, *, pictures: int = 1) -> np.ndarray:
    """uint8[H, W, 3] to uint8[h, w, 3], by PIL's bicubic filter with antialiasing.

    Raises: ValueError for anything else than uint8[H, W, 3].
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
      raise ValueError(f'A picture must be uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}.')
    size = self.size(picture.shape[1], picture.shape[0], pictures=pictures)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))

  def __call__(self, picture: np.ndarray, *, pictures: int = 1) -> np.ndarray:
    """uint8[H, W, 3] to float32[h, w, 3] in [-1, 1]."""
    return normalised(self.resize(picture, pictures=pictures))

  def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
    def divisible(side: float) -> int:
      return max(self.stride, round(round(side * scale) / self.stride) * self.stride)

    return divisible(width), divisible(height)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
  """Brings pictures to the nearest of some sizes: those of `config.data.picture_sizes` and the model's own.

  Attributes:
    sizes: (height, width) in pixels, as in the config.
  """

  sizes: tuple[tuple[int, int], ...]

  def size(self, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the size whose aspect is nearest; of equal ones that with the nearest area.

    >>> Nearest(sizes=((512, 512), (512, 768), (768, 512))).size(1000, 1600)
    (512, 768)
    """

    def distance(size: tuple[int, int]) -> tuple[float, float]:
      aspect = math.log(size[1] * height / (size[0] * width))
      return round(abs(aspect), 6), abs(math.log(size[0] * size[1] / (height * width)))

    return min(self.sizes, key=distance)

  def resize(self, picture: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] to uint8[h, w, 3]: scaled to cover the nearest size, bicubic; what is too much is cut off evenly.

    Raises: ValueError for anything else than uint8[H, W, 3].
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
      raise ValueError(f'A picture must be uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}.')
    size = self.size(picture.shape[0], picture.shape[1])
    if picture.shape[:2] == size:
      return picture
    height, width = size
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BICUBIC))


VAE = ImageTransform(max_size=1024, min_size=512, stride=16)  # of the released inference code
VIT = ImageTransform(max_size=980, min_size=224, stride=14)


def read_size(text: str) -> tuple[int, int]:
  """(height, width) of `WIDTHxHEIGHT`. Raises: ValueError for anything else.

  >>> read_size('768x1024')
  (1024, 768)
  """
  width, height = map(int, text.lower().split('x'))
  return height, width


def read_aspect(text: str) -> float:
  """Width by height of `16:9`. Raises: ValueError for anything else."""
  width, height = map(int, text.split(':'))
  if not 0 < width <= 100 * height <= 10_000 * width:
    raise ValueError(f'{text} is no aspect of a picture.')
  return width / height


def size_of_aspect(aspect: float, model: config_lib.ModelConfig) -> tuple[int, int]:
  """(height, width) of whole patches with about the area of the model's own pictures, within its position table.

  >>> size_of_aspect(16 / 9, config_lib.ModelConfig(image_size=1024, codec=config_lib.CodecConfig(patch=16),
  ...   max_latent_size=64))
  (576, 1024)
  """
  rows, columns = model.latent_grid / aspect**0.5, model.latent_grid * aspect**0.5
  fits = min(1.0, model.max_latent_size / max(rows, columns))
  rows, columns = (max(1, round(side * fits)) * model.codec.patch for side in (rows, columns))
  return rows, columns


def given(model: config_lib.ModelConfig) -> ImageTransform:
  """The resize of pictures of a prompt, whatever the mode (BAGEL, QUIRKS 32); it leaves those that fit as they are."""
  codec = model.codec
  most = codec.given_max or codec.patch * model.max_latent_size
  return ImageTransform(max_size=most, min_size=max(codec.given_min, 1), stride=codec.patch)


def given_for_vit(vit: config_lib.VitConfig) -> ImageTransform:
  """The resize after that, to what the ViT sees of pictures that are not of the model's own size."""
  most = vit.given_max or vit.patch * vit.max_patches
  return ImageTransform(max_size=most, min_size=max(vit.given_min, 1), stride=vit.patch)


def for_vit(picture: np.ndarray, model: config_lib.ModelConfig) -> np.ndarray:
  """A picture of any size as the model's ViT sees it: scaled as one of the model's own size is, to whole patches.

  uint8[H, W, 3] to uint8[h, w, 3], bicubic.

  Raises: ValueError for a model without ViT.
  """
  if model.vit is None:
    raise ValueError('The model has no ViT (config.model.vit).')
  rows, columns = model.vit_grid_of((picture.shape[0], picture.shape[1]))
  height, width = rows * model.vit.patch, columns * model.vit.patch
  if (height, width) == picture.shape[:2]:
    return picture
  return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def normalised(picture: np.ndarray) -> np.ndarray:
  """uint8 to float32 in [-1, 1], with the reference's rounding."""
  return (picture.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def patches(picture: np.ndarray, patch: int) -> np.ndarray:
  """[H, W, C] to [rows * columns, patch * patch * C]: row-major, each patch ordered (row, column, channel) (BAGEL).

  >>> patches(np.arange(16).reshape(4, 4, 1), 2)[1]
  array([2, 3, 6, 7])
  """
  height, width, channels = picture.shape
  rows, columns = height // patch, width // patch
  x = picture[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, channels)
  return x.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


# What a picture may have; a small file may inflate to any size.
MOST_PIXELS, MOST_BYTES = 2**26, 2**28
_ORIENTATION = 0x0112  # Tag of Exif.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # No EPS, PDF, ...: those run or fetch other things.


def open_picture(source: bytes | str | os.PathLike, *, max_pixels: int = MOST_PIXELS) -> np.ndarray:
  """Reads an encoded picture as it is meant to be seen: uint8[H, W, 3], writable.

  Turned as its Exif data say, laid on white where it is transparent, 16 bits rounded to 8, CMYK, palettes and greys
  as RGB; of an animation the first frame. Colour profiles are not applied.

  Args:
    source: content of a file, or its path.
    max_pixels: height times width that it may have, checked before it is decoded.

  Raises: FileNotFoundError; ValueError, of one line, naming the path (if it is one) and what is wrong.
  """
  name = 'The picture' if isinstance(source, bytes) else os.fspath(source)
  if not isinstance(source, bytes):
    path = pathlib.Path(source)
    if not path.is_file():
      raise FileNotFoundError(f'{name} is no file.')
    if (size := path.stat().st_size) > MOST_BYTES:
      raise ValueError(f'{name} has {size} bytes; a picture may have {MOST_BYTES}.')
    source = path.read_bytes()
  if not source:
    raise ValueError(f'{name} is empty.')
  try:
    with warnings.catch_warnings(action='ignore'):  # Of sizes, which are checked here, and of odd metadata.
      with Image.open(io.BytesIO(source), formats=_FORMATS) as image:
        if (pixels := image.width * image.height) > max_pixels:
          raise _Refused(f'has {image.width} x {image.height} = {pixels} pixels; it may have {max_pixels}')
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
  except _Refused as error:
    raise ValueError(f'{name} {error}.') from None
  except Exception as error:  # Of Pillow's decoders: OSError, SyntaxError, struct.error, ..
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      reason = f'it is none of {", ".join(_FORMATS)}'
    raise ValueError(f'{name} cannot be decoded: {reason}.') from None


def as_picture(source: 'PictureSource') -> np.ndarray:
  """A picture as users have it, as it is meant to be seen: uint8[H, W, 3].

  Args:
    source: a file (path, or its content), an image of Pillow, or an array: uint8[H, W, 3], or what Pillow makes an
      image of (greys, alpha, 16 bits).

  Raises: as `open_picture`; ValueError for an array that is no picture.
  """
  if isinstance(source, bytes | str | os.PathLike):
    return open_picture(source)
  if isinstance(source, Image.Image):
    return _rgb(ImageOps.exif_transpose(source))
  array = np.asarray(source)
  if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3 and array.size:
    return array
  try:
    if not array.size or array.dtype not in (np.uint8, np.uint16):
      raise TypeError
    return _rgb(Image.fromarray(array))
  except TypeError:
    raise ValueError(
      f'A picture {array.dtype}{list(array.shape)} is given; pictures are uint8[H, W, 3], images of Pillow, or files.'
    ) from None


def is_plain(content: bytes) -> bool:
  """Whether a picture file shows the same to whoever decodes it to RGB: nothing to turn, no transparency, 8 bits."""
  with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return image.mode in ('RGB', 'L') and 'transparency' not in image.info and not turned


PictureSource = np.ndarray | Image.Image | bytes | str | os.PathLike


class _Refused(ValueError):
  """What is wrong with a picture, as the end of a sentence."""


def _rgb(image: Image.Image) -> np.ndarray:
  if image.mode in ('F', 'I') or image.mode.startswith('I;'):
    levels = np.asarray(image)
    if image.mode == 'F' or levels.min() < 0 or levels.max() > 65535:
      raise _Refused(f'has pixels of mode {image.mode} that are no levels of 16 bits: convert it')
    grey = ((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
  if image.mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert('RGB'))
  return np.array(image.convert('RGB'))
