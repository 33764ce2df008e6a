"""What the suites measure: sizes of the model, of rows, of pictures and of batches, by name."""

import dataclasses

from pdgen.core import config as config_lib
from pdgen.models import presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """One set of sizes."""

  model: config_lib.ModelConfig  # At the size of the training pictures.
  attention: tuple[str, ...]  # Implementations to compare; the first one is what the other suites use.
  row_tokens: tuple[int, ...]  # Tokens of rows for attention; the last one is the row of the train step.
  und_share: float  # Of a row, for und tokens.
  pictures: tuple[int, ...]  # Sides of painted pictures, in pixels.
  flow_steps: int  # Euler steps of a painted picture.
  batch_sizes: tuple[int, ...]  # Of text and of the shapes world.
  text_tokens: int  # Tokens that a trajectory writes.
  reference_tokens: int  # Longest row that the reference attention, and cuDNN with a mask, are tried at.
  matmul: tuple[int, ...]  # Sides of the square products.
  train_steps: int  # Steps of the shapes config that are timed.
  read_rows: int  # Rows of records that are timed.
  read_steps: tuple[int, ...]  # Pictures of the trajectories in them, in turn.
  workers: tuple[int, ...]  # Processes that read them, each in turn.
  max_depth: int | None = None  # Most layers of the train step; None: all.
  checkpoint: str = 'shapes'  # Whose weights are quantised.
  records: str = ''  # A record set to read; empty: one that is made.


def _tiny() -> Sizes:
  """Seconds on a CPU: for tests, and to see that everything runs."""
  model = config_lib.ModelConfig(
    vocab_size=640,
    width=32,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    mlp_dim=64,
    image_size=32,
    codec=config_lib.CodecConfig(patch=8),
    max_latent_size=8,
    vit=config_lib.VitConfig(width=32, depth=1, num_heads=2, mlp_dim=64, patch=8, max_patches=8, image_size=32),
    attention='blockwise',
    remat='full',
  )
  return Sizes(
    model=model,
    attention=('blockwise', 'pallas_gpu', 'reference'),
    row_tokens=(640,),
    und_share=0.75,
    pictures=(32,),
    flow_steps=3,
    batch_sizes=(1, 2),
    text_tokens=16,
    reference_tokens=640,
    matmul=(256,),
    train_steps=2,
    read_rows=2,
    read_steps=(1,),
    workers=(0,),
    max_depth=2,
  )


def _bagel_7b() -> Sizes:
  """BAGEL-7B on one H100 or H200: rows of 33,000 tokens of 512-pixel pictures (paper)."""
  return Sizes(
    model=dataclasses.replace(
      presets.at_image_size(presets.bagel_7b(), 512), attention='pallas_gpu', remat='attention'
    ),
    attention=('pallas_gpu', 'blockwise', 'reference'),
    row_tokens=(8_192, 33_000),
    und_share=14_400 / 33_000,
    pictures=(512, 1024),
    flow_steps=49,
    batch_sizes=(1, 8, 64),
    text_tokens=128,
    reference_tokens=8_192,
    matmul=(8192,),
    train_steps=100,
    read_rows=24,
    read_steps=(3, 4, 4, 3),  # (paper) 3.51 in the mean
    workers=(0, 1, 2),
  )


def _bagel_59m() -> Sizes:
  """Every part of BAGEL with 59M parameters, autoencoder not counted: minutes on two cores of a CPU."""
  model = config_lib.ModelConfig(
    vocab_size=8192,
    width=512,
    depth=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=1408,
    rope_theta=1e6,
    max_latent_size=32,
    image_size=256,
    codec=config_lib.CodecConfig(kind='flux', patch=16, vae=config_lib.VaeConfig(width=32, multipliers=(1, 1, 2, 2))),
    vit=config_lib.VitConfig(width=192, depth=4, num_heads=4, mlp_dim=512, patch=14, max_patches=32, image_size=168),
    attention='blockwise',
  )
  return dataclasses.replace(
    _tiny(),
    model=model,
    attention=('blockwise', 'reference'),
    row_tokens=(2048,),
    und_share=0.5,
    pictures=(256,),
    flow_steps=20,
    batch_sizes=(1, 8, 32),
    text_tokens=64,
    reference_tokens=2048,
    matmul=(1024,),
    max_depth=None,
  )


SIZES = {'tiny': _tiny, 'bagel_59m': _bagel_59m, 'bagel_7b': _bagel_7b}
