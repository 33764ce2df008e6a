"""The part of a configuration that says what the model is; `core.config` has the rest, and all of these names."""

import dataclasses

from pdgen.core import dataclass_io

DTYPES = ('bfloat16', 'float16', 'float32')  # To compute in.


def _check_given(config: 'VitConfig | CodecConfig', path: str, *, table: int):
  """Raises ValueError for sizes of given pictures that cannot be. table: pixels a side of the position table."""
  dataclass_io.at_least(config, path, given_max=0, given_min=0)
  if not config.given_min <= (config.given_max or table) <= table:
    raise ValueError(
      f'config.{path}.given_min={config.given_min} is at most given_max={config.given_max} (0: {table}), and that at '
      f'most {table} pixels (the position table).'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
  """The understanding encoder (SigLIP in BAGEL): pixels to tokens of the und stream.

  Attributes:
    width, depth, num_heads, mlp_dim: of the encoder; GELU-tanh, LayerNorm, biases everywhere.
    patch: pixels a side of a patch.
    max_patches: patches a side of the learned position table, and of the fixed one added after the connector.
    image_size: pixels a side at which it sees the model's pictures; 0: as large as they are (BAGEL: 980 of 1024).
    given_max, given_min: of the pictures of a prompt, as of CodecConfig (BAGEL: 980, 224).
  """

  width: int = 96
  depth: int = 2
  num_heads: int = 4
  mlp_dim: int = 256
  patch: int = 8
  max_patches: int = 4
  image_size: int = 0
  given_max: int = 0
  given_min: int = 0

  def __post_init__(self):
    one = dict.fromkeys(('width', 'depth', 'num_heads', 'mlp_dim', 'patch', 'max_patches'), 1)
    dataclass_io.at_least(self, 'model.vit', image_size=0, **one)
    _check_given(self, 'model.vit', table=self.patch * self.max_patches)
    if self.width % self.num_heads:
      raise ValueError(f'config.model.vit.width={self.width} must be a multiple of {self.num_heads=}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
  """The FLUX autoencoder; defaults are those of the released one (BAGEL's `load_ae`).

  Attributes:
    width: channels of the finest level.
    multipliers: channels of each level as a multiple of width; every level after the first halves the sides.
    blocks: residual blocks a level (one more in the decoder); channels: of a latent; groups: of every group norm.
    scale, shift: a latent is scale * (z - shift).
    sample_posterior: training draws its clean latents from the posterior instead of taking the mean (BAGEL).
  """

  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  channels: int = 16
  groups: int = 32
  scale: float = 0.3611
  shift: float = 0.1159
  sample_posterior: bool = True

  def __post_init__(self):
    dataclass_io.at_least(self, 'model.codec.vae', width=1, blocks=1, channels=1, groups=1)
    dataclass_io.finite(self, 'model.codec.vae')
    if not self.multipliers or min(self.multipliers) < 1:
      raise ValueError(f'config.model.codec.vae.multipliers={self.multipliers}: one or more numbers of at least 1.')

  @property
  def downsample(self) -> int:
    """Pixels a side of one latent."""
    return 2 ** (len(self.multipliers) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
  """Between pixels and latents.

  Attributes:
    kind: name in `models.codecs.CODECS`. `pixel`: patches of pixels scaled to [-1, 1], the small world's "VAE".
      `flux`: the autoencoder `vae`, frozen; patch / downsample latents a side make one gen token (BAGEL: 2).
    patch, vae: pixels a side that make one gen token; the autoencoder of `flux`.
    given_max, given_min: pictures of a prompt are made smaller, and larger, until their longer side has at most and
      their shorter one at least so many pixels (`data.images.given`); 0: as many as the position table holds, and any
      (BAGEL: 1024, 512).
  """

  kind: str = 'pixel'
  patch: int = 8
  vae: VaeConfig | None = None
  given_max: int = 0
  given_min: int = 0

  @property
  def channels(self) -> int:
    """Values in a gen token."""
    return 3 * self.patch**2 if self.vae is None else self.vae.channels * (self.patch // self.vae.downsample) ** 2

  def __post_init__(self):
    dataclass_io.at_least(self, 'model.codec', patch=1)
    dataclass_io.at_least(self, 'model.codec', given_max=0, given_min=0)
    if (self.kind == 'flux') != (self.vae is not None):
      raise ValueError(f'Codec {self.kind!r} with {self.vae=}: `flux`, and no other codec, needs a VaeConfig.')
    if self.vae is not None and self.patch % self.vae.downsample:
      raise ValueError(f'{self.patch=} must be a multiple of the {self.vae.downsample} pixels a side of one latent.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank adapters: y = x W + (alpha / rank) (x A) B (Hu et al., arXiv 2106.09685). Freeze W with train.freeze.

  Attributes:
    rank, alpha: see above; B starts at zero.
    kernels: which matrices of a layer have one, a regular expression of `expert/matrix`: experts `und`, `gen`; matrices
      q, k, v, o, gate, up, down.
  """

  rank: int = 16
  alpha: float = 32.0
  kernels: str = '(und|gen)/(q|k|v|o)'

  def __post_init__(self):
    dataclass_io.at_least(self, 'model.lora', rank=1)
    dataclass_io.finite(self, 'model.lora')
    dataclass_io.patterns(self, 'model.lora', 'kernels')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The mixture of transformers.

  Attributes:
    vocab_size: rows of the embedding and of the language head; at least the tokenizer's.
    width, depth, num_heads, num_kv_heads, head_dim, mlp_dim: of both experts.
    qkv_bias: q, k, v projections have biases (BAGEL: yes; the output projection never).
    rope_theta: base of the rotary angles.
    norm_eps: of every norm (BAGEL: 1e-6).
    max_latent_size: latent patches a side of the fixed 2-D sin-cos table.
    prediction: what the velocity head gives: `velocity` (paper) or `x`, the clean latents, turned into a velocity.
    min_t: with `prediction='x'`, t is clamped to at least this where a loss or a velocity divides by it.
    image_size: pixels a side of the pictures the model paints.
    interpolate_positions: spread the position ids of a picture over the whole table, of latents and of ViT patches
      (BAGEL's `interpolate_pos`, not in use).
    codec, vit: picture codec; optional understanding encoder (None: pictures re-enter as clean latents alone).
    lora: adapters beside the matrices of the layers; None: none.
    attention: name in `models.attention.IMPLEMENTATIONS`; `auto`: the fastest one for the devices.
    remat: `none`, or a policy name of `models.remat.POLICIES` for the scanned layers.
    scan_layers: one compiled layer, scanned; False unrolls (for FLOP counts and very shallow models).
    dtype: compute dtype. Parameters are always float32.
  """

  vocab_size: int = 640
  width: int = 192
  depth: int = 4
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 48
  mlp_dim: int = 512
  qkv_bias: bool = True
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  max_latent_size: int = 4
  prediction: str = 'velocity'
  min_t: float = 0.2
  image_size: int = 32
  interpolate_positions: bool = False
  codec: CodecConfig = CodecConfig()
  vit: VitConfig | None = None
  lora: LoraConfig | None = None
  attention: str = 'reference'
  remat: str = 'none'
  scan_layers: bool = True
  dtype: str = 'float32'

  @property
  def latent_grid(self) -> int:
    """Gen tokens a side of a picture."""
    return self.image_size // self.codec.patch

  @property
  def latent_tokens(self) -> int:
    return self.latent_grid**2

  @property
  def vit_tokens(self) -> int:
    """ViT tokens of a picture."""
    return self.vit_grid**2 if self.vit else 0

  @property
  def picture_tokens(self) -> int:
    """Tokens of a picture in the context: its clean copy and, with a ViT, its ViT copy, each with two boundaries."""
    return self.picture_tokens_of(self.own_size)

  @property
  def own_size(self) -> tuple[int, int]:
    """(height, width) in pixels of the pictures the model paints, if nothing else is asked for."""
    return self.image_size, self.image_size

  def latent_grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of gen tokens of a picture of (height, width) pixels."""
    return size[0] // self.codec.patch, size[1] // self.codec.patch

  def vit_grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of ViT tokens of a picture: scaled as one of the model's own size is, to whole patches.

    (0, 0) without a ViT.
    """
    if self.vit is None:
      return 0, 0
    scale, patch = self.vit_size / self.image_size, self.vit.patch
    rows, columns = (min(self.vit.max_patches, max(1, round(side * scale / patch))) for side in size)
    return rows, columns

  def picture_tokens_of(self, size: tuple[int, int]) -> int:
    """As `picture_tokens`, of a picture of (height, width) pixels."""
    (rows, columns), (vit_rows, vit_columns) = self.latent_grid_of(size), self.vit_grid_of(size)
    return rows * columns + 2 + (vit_rows * vit_columns + 2 if self.vit else 0)

  @property
  def vit_size(self) -> int:
    """Pixels a side at which the ViT sees pictures; 0 without a ViT."""
    return (self.vit.image_size or self.image_size) if self.vit else 0

  @property
  def vit_grid(self) -> int:
    """ViT tokens a side of a picture; 0 without a ViT."""
    return self.vit_size // self.vit.patch if self.vit else 0

  def __post_init__(self):
    sizes = ('vocab_size', 'width', 'depth', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim', 'max_latent_size')
    dataclass_io.at_least(self, 'model', image_size=1, **dict.fromkeys(sizes, 1))
    for name in ('rope_theta', 'norm_eps', 'min_t'):
      dataclass_io.positive(self, 'model', name)
    dataclass_io.finite(self, 'model')
    if self.head_dim % 2:
      raise ValueError(f'config.model.head_dim={self.head_dim} must be even: rotary angles turn pairs.')
    if self.dtype not in DTYPES:
      raise ValueError(f'config.model.dtype={self.dtype!r}. Known: {list(DTYPES)}')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'{self.num_heads=} must be a multiple of {self.num_kv_heads=}.')
    if self.prediction not in ('velocity', 'x'):
      raise ValueError(f"Unknown prediction {self.prediction!r}. Known: ['velocity', 'x']")
    if self.image_size % self.codec.patch:
      raise ValueError(f'{self.image_size=} must be a multiple of {self.codec.patch=}.')
    _check_given(self.codec, 'model.codec', table=self.codec.patch * self.max_latent_size)
    if self.latent_grid > self.max_latent_size:
      raise ValueError(f'{self.latent_grid} latent patches a side, but {self.max_latent_size=}.')
    if self.vit is not None:
      if self.vit_size % self.vit.patch:
        raise ValueError(
          f'{self.vit_size=} (vit.image_size, or else image_size) must be a multiple of {self.vit.patch=}.'
        )
      if self.vit_grid > self.vit.max_patches:
        raise ValueError(f'{self.vit_grid} ViT patches a side, but {self.vit.max_patches=}.')
