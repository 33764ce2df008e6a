"""Pictures on the wire: uint8[H, W, 3] to PNG and data URLs, and whatever a service sends back to uint8[H, W, 3]."""

import base64
import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

_MOST_PIXELS = 64_000_000


def png(picture: np.ndarray) -> bytes:
  """uint8[H, W, 3] as a PNG file. Raises: ValueError for anything else."""
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
    raise ValueError(f'A picture must be uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}.')
  out = io.BytesIO()
  Image.fromarray(picture).save(out, format='PNG')
  return out.getvalue()


def base64_png(picture: np.ndarray) -> str:
  return base64.b64encode(png(picture)).decode()


def data_url(picture: np.ndarray) -> str:
  """uint8[H, W, 3] as `data:image/png;base64,..`."""
  return f'data:image/png;base64,{base64_png(picture)}'


def digest(picture: np.ndarray) -> str:
  """Hash of shape and pixels: that of the PNG would change with the version of the encoder."""
  return hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def decode(content: bytes) -> np.ndarray:
  """A picture file as uint8[H, W, 3]: upright, transparency on white, 16-bit and palette pictures converted.

  Raises: ValueError, of one line, for what is no whole picture of at most 64 megapixels.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of odd but readable files, and of sizes, which are checked here.
      with Image.open(io.BytesIO(content)) as opened:
        if opened.width * opened.height > _MOST_PIXELS:
          raise ValueError(f'it has {opened.width} x {opened.height} pixels')
        image = ImageOps.exif_transpose(opened)
        image.load()
    return np.asarray(_rgb(image))
  except (OSError, ValueError, SyntaxError, TypeError, EOFError, MemoryError, Image.DecompressionBombError) as error:
    raise ValueError(
      f'no picture can be read from {len(content):,} bytes: {" ".join(str(error).split())[:100]}'
    ) from None


def decode_base64(text: str) -> np.ndarray:
  """As `decode`, of base64 with or without the head of a data URL."""
  head, comma, body = text.partition(',')
  try:
    content = base64.b64decode(body if comma and head.startswith('data:') else text, validate=True)
  except ValueError as error:
    raise ValueError(f'the picture is no base64: {error}') from None
  return decode(content)


def resized(picture: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """uint8[H, W, 3] at (height, width), by PIL's Lanczos filter; None: as it is."""
  if size is None or picture.shape[:2] == tuple(size):
    return picture
  return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith(('I', 'F')):
    values = np.asarray(image, np.float64)
    # PNG of 16 bits; Pillow reads it as I or I;16. Its own conversion to 8 bits clips.
    scale = 257.0 if image.mode.startswith('I') else 1.0
    return Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8)).convert('RGB')
  if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, (255, 255, 255, 255)), image).convert('RGB')
  return image.convert('RGB')
