"""The released names of BAGEL's weights and ours: one table, read in both directions.

`{l}` is a layer of a stack (our arrays have all layers along a leading axis); `{i}` and `{j}` are numbers that both
names carry. Every released name is matched by exactly one rule, and every parameter of ours by exactly one.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pdgen.core import config
from pdgen.models import presets

EMA, AE = 'ema.safetensors', 'ae.safetensors'  # files of a released folder
# A released folder has both; config.json and ae_config.json may be absent.
JSON = ('llm_config.json', 'vit_config.json')
# How the axes of a released array come to be ours.
SAME, LINEAR, CONV = 'same', 'linear', 'conv'
_AXES = {SAME: None, LINEAR: (1, 0), CONV: (2, 3, 1, 0)}  # [out, in]; [out, in, rows, columns]
_BACK = {SAME: None, LINEAR: (1, 0), CONV: (3, 2, 0, 1)}
OF_VIT = ('vit_model.', 'connector.', 'vit_pos_embed.')  # How the names of all that a ViT needs begin.
# The two sin-cos tables of a released file are no parameters of ours, which computes them (QUIRKS 3): kept to be given
# back, bit for bit.
FIXED = 'fixed/'


class Rule(NamedTuple):
  """Which parameter of ours a released tensor is. The names are patterns, see the module."""

  file: str  # Of the released folder.
  released: str  # Name in that file.
  ours: str  # Path of our parameter.
  layout: str = SAME  # How the released axes become ours: SAME, LINEAR or CONV.


class Entry(NamedTuple):
  """A released tensor."""

  file: str  # Of the released folder.
  name: str  # In that file.
  path: str  # Of our parameter.
  layer: int | None  # Its index in the stack at our path; None: it is the whole array.
  layout: str  # SAME, LINEAR or CONV.
  shape: tuple[int, ...]  # As released.


def _linear(file: str, released: str, ours: str, *, bias: bool = True) -> tuple[Rule, ...]:
  kernel = Rule(file, f'{released}.weight', f'{ours}/kernel', LINEAR)
  return (kernel, Rule(file, f'{released}.bias', f'{ours}/bias')) if bias else (kernel,)


def _norm(file: str, released: str, ours: str) -> tuple[Rule, ...]:
  return Rule(file, f'{released}.weight', f'{ours}/scale'), Rule(file, f'{released}.bias', f'{ours}/bias')


def _conv(released: str, ours: str) -> tuple[Rule, ...]:
  return Rule(AE, f'{released}.weight', f'{ours}/kernel', CONV), Rule(AE, f'{released}.bias', f'{ours}/bias')


def _expert(suffix: str, ours: str) -> tuple[Rule, ...]:
  """One expert of a layer. suffix: what its released names carry."""
  layer, ours = 'language_model.model.layers.{l}', f'trunk/layers/{ours}'
  return (
    Rule(EMA, f'{layer}.input_layernorm{suffix}.weight', f'{ours}/attention_norm/scale'),
    *_linear(EMA, f'{layer}.self_attn.q_proj{suffix}', f'{ours}/q'),
    *_linear(EMA, f'{layer}.self_attn.k_proj{suffix}', f'{ours}/k'),
    *_linear(EMA, f'{layer}.self_attn.v_proj{suffix}', f'{ours}/v'),
    *_linear(EMA, f'{layer}.self_attn.o_proj{suffix}', f'{ours}/o', bias=False),
    Rule(EMA, f'{layer}.self_attn.q_norm{suffix}.weight', f'{ours}/q_norm/scale'),
    Rule(EMA, f'{layer}.self_attn.k_norm{suffix}.weight', f'{ours}/k_norm/scale'),
    Rule(EMA, f'{layer}.post_attention_layernorm{suffix}.weight', f'{ours}/mlp_norm/scale'),
    *_linear(EMA, f'{layer}.mlp{suffix}.gate_proj', f'{ours}/gate', bias=False),
    *_linear(EMA, f'{layer}.mlp{suffix}.up_proj', f'{ours}/up', bias=False),
    *_linear(EMA, f'{layer}.mlp{suffix}.down_proj', f'{ours}/down', bias=False),
  )


def _resnet(released: str, ours: str, *, shortcut: bool = True) -> tuple[Rule, ...]:
  return (
    *_norm(AE, f'{released}.norm1', f'{ours}/norm1'),
    *_conv(f'{released}.conv1', f'{ours}/conv1'),
    *_norm(AE, f'{released}.norm2', f'{ours}/norm2'),
    *_conv(f'{released}.conv2', f'{ours}/conv2'),
    *(_conv(f'{released}.nin_shortcut', f'{ours}/shortcut') if shortcut else ()),
  )


def _half_of_vae(half: str, level: str, resize: str) -> tuple[Rule, ...]:
  """Encoder or decoder. level: `down` or `up`; resize: the released module that changes the resolution."""
  ours = f'codec/vae/{half}'
  return (
    *_conv(f'{half}.conv_in', f'{ours}/conv_in'),
    *_resnet(f'{half}.{level}.{{i}}.block.{{j}}', f'{ours}/{level}_{{i}}/block_{{j}}'),
    *_conv(f'{half}.{level}.{{i}}.{resize}.conv', f'{ours}/{level}_{{i}}/conv'),
    *_resnet(f'{half}.mid.block_{{i}}', f'{ours}/mid/block_{{i}}', shortcut=False),
    *_norm(AE, f'{half}.mid.attn_1.norm', f'{ours}/mid/attention/norm'),
    *_conv(f'{half}.mid.attn_1.q', f'{ours}/mid/attention/q'),
    *_conv(f'{half}.mid.attn_1.k', f'{ours}/mid/attention/k'),
    *_conv(f'{half}.mid.attn_1.v', f'{ours}/mid/attention/v'),
    *_conv(f'{half}.mid.attn_1.proj_out', f'{ours}/mid/attention/o'),
    *_norm(AE, f'{half}.norm_out', f'{ours}/norm_out'),
    *_conv(f'{half}.conv_out', f'{ours}/conv_out'),
  )


_VIT, _VIT_LAYER = 'vit_model.vision_model', 'vit_model.vision_model.encoder.layers.{l}'
RULES: tuple[Rule, ...] = (
  Rule(EMA, 'language_model.model.embed_tokens.weight', 'embed/table'),
  *_expert('', 'und'),
  *_expert('_moe_gen', 'gen'),
  Rule(EMA, 'language_model.model.norm.weight', 'trunk/und_norm/scale'),
  Rule(EMA, 'language_model.model.norm_moe_gen.weight', 'trunk/gen_norm/scale'),
  *_linear(EMA, 'language_model.lm_head', 'head', bias=False),
  *_linear(EMA, 'time_embedder.mlp.0', 'time/fc1'),
  *_linear(EMA, 'time_embedder.mlp.2', 'time/fc2'),
  *_linear(EMA, 'vae2llm', 'latent_in'),
  *_linear(EMA, 'llm2vae', 'latent_out'),
  Rule(EMA, 'latent_pos_embed.pos_embed', f'{FIXED}latent_position'),
  Rule(EMA, 'vit_pos_embed.pos_embed', f'{FIXED}vit_position'),
  *_linear(EMA, f'{_VIT}.embeddings.patch_embedding', 'vit/patch_embedding'),
  Rule(EMA, f'{_VIT}.embeddings.position_embedding.weight', 'vit/position/table'),
  *_norm(EMA, f'{_VIT_LAYER}.layer_norm1', 'vit/layers/norm1'),
  *_linear(EMA, f'{_VIT_LAYER}.self_attn.q_proj', 'vit/layers/q'),
  *_linear(EMA, f'{_VIT_LAYER}.self_attn.k_proj', 'vit/layers/k'),
  *_linear(EMA, f'{_VIT_LAYER}.self_attn.v_proj', 'vit/layers/v'),
  *_linear(EMA, f'{_VIT_LAYER}.self_attn.out_proj', 'vit/layers/o'),
  *_norm(EMA, f'{_VIT_LAYER}.layer_norm2', 'vit/layers/norm2'),
  *_linear(EMA, f'{_VIT_LAYER}.mlp.fc1', 'vit/layers/fc1'),
  *_linear(EMA, f'{_VIT_LAYER}.mlp.fc2', 'vit/layers/fc2'),
  *_norm(EMA, f'{_VIT}.post_layernorm', 'vit/post_norm'),
  *_linear(EMA, 'connector.fc1', 'vit/connector1'),
  *_linear(EMA, 'connector.fc2', 'vit/connector2'),
  *_half_of_vae('encoder', 'down', 'downsample'),
  *_half_of_vae('decoder', 'up', 'upsample'),
)


def place(file: str, name: str) -> tuple[str, int | None, str]:
  """Our path, the layer in its stack (None: no stack), and the layout of a released name.

  >>> place(EMA, 'language_model.model.layers.3.self_attn.q_proj_moe_gen.weight')
  ('trunk/layers/gen/q/kernel', 3, 'linear')

  Raises: ValueError when not exactly one rule matches.
  """
  found = [(rule, m) for rule in RULES if rule.file == file and (m := _pattern(rule.released).fullmatch(name))]
  if len(found) != 1:
    raise ValueError(f'{len(found)} rules of weights.bagel.RULES match {name!r} of {file}; exactly one must.')
  rule, match = found[0]
  numbers = match.groupdict()
  layer = numbers.pop('l', None)
  return rule.ours.format(**numbers), None if layer is None else int(layer), rule.layout


def entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, str], Entry]:
  """Every released tensor of a model, by file and name. shapes: of our arrays by path, those of `FIXED` included.

  Raises: ValueError when not exactly one rule matches a path.
  """
  out = {}
  for path, shape in shapes.items():
    found = [(rule, m) for rule in RULES if (m := _pattern(rule.ours).fullmatch(path))]
    if len(found) != 1:
      raise ValueError(f'{len(found)} rules of weights.bagel.RULES match {path!r}; exactly one must.')
    rule, match = found[0]
    stacked = '{l}' in rule.released
    back = _BACK[rule.layout]
    released = tuple(shape[stacked:]) if back is None else tuple(shape[stacked:][axis] for axis in back)
    for layer in range(shape[0]) if stacked else (None,):
      name = rule.released.format(**match.groupdict(), l=layer)
      out[rule.file, name] = Entry(rule.file, name, path, layer, rule.layout, released)
  return out


def to_ours(array: Any, layout: str) -> Any:
  """The released array with our axes (of numpy: a view)."""
  return array if _AXES[layout] is None else array.transpose(_AXES[layout])


def to_released(array: Any, layout: str) -> Any:
  """Our array, of one layer, with the released axes (of numpy: a view)."""
  return array if _BACK[layout] is None else array.transpose(_BACK[layout])


@functools.cache
def _pattern(template: str) -> re.Pattern:
  parts = re.split(r'\{(\w)\}', template)
  return re.compile(''.join(f'(?P<{p}>[0-9]+)' if n % 2 else re.escape(p) for n, p in enumerate(parts)))


def from_released(
  llm: Mapping[str, Any],
  vit: Mapping[str, Any] | None,
  bagel: Mapping[str, Any],
  vae: Mapping[str, Any],
  *,
  dtype: str,
) -> config.ModelConfig:
  """The model that the json files of a released folder describe.

  Upstream forces untied embeddings, QK-norm and `Qwen2MoTDecoderLayer` whatever the files say (QUIRKS 2). It paints
  squares as large as the tables allow, at most 1024.

  Args:
    llm: content of llm_config.json.
    vit: of vit_config.json; None: the model has no ViT.
    bagel: of config.json; may be empty.
    vae: of ae_config.json; may be empty.
    dtype: compute dtype.

  Raises: ValueError for what pdgen does not compute as the reference does, and for a field that is missing or of the
  wrong kind, naming its file.
  """
  for name, field, known in (
    ('llm_config.json', llm.get('hidden_act', 'silu'), 'silu'),
    ('llm_config.json', llm.get('use_sliding_window', False), False),
    ('llm_config.json', llm.get('rope_scaling'), None),
    ('config.json', bagel.get('connector_act', 'gelu_pytorch_tanh'), 'gelu_pytorch_tanh'),
    ('config.json', bagel.get('vit_rope', False), False),
    ('config.json', bagel.get('llm_qk_norm', True), True),
  ):
    if field != known:
      raise ValueError(f'{name} asks for {field!r} where pdgen computes {known!r}.')
  size_of = functools.partial(_number, kind=int, at_least=1, at_most=2**24)
  depth_of = functools.partial(_number, kind=int, at_least=1, at_most=1000)
  latent_patch = depth_of(bagel, 'latent_patch_size', of='config.json', default=presets.LATENT_PATCH)
  autoencoder = config.VaeConfig()
  if vae:
    levels = vae.get('ch_mult')
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
      raise ValueError(f'ae_config.json: ch_mult is {levels!r}, no list of 1 to 8 numbers.')
    autoencoder = dataclasses.replace(
      autoencoder,
      width=size_of(vae, 'ch', of='ae_config.json'),
      multipliers=tuple(depth_of({'ch_mult': level}, 'ch_mult', of='ae_config.json') for level in levels),
      blocks=depth_of(vae, 'num_res_blocks', of='ae_config.json'),
      channels=depth_of(vae, 'z_channels', of='ae_config.json'),
      scale=_number(vae, 'scale_factor', of='ae_config.json', kind=float, at_least=1e-6, at_most=1e6),
      shift=_number(vae, 'shift_factor', of='ae_config.json', kind=float, at_least=-1e6, at_most=1e6),
    )
  side = depth_of(bagel, 'max_latent_size', of='config.json', default=presets.MAX_LATENT_SIZE)
  patch = latent_patch * autoencoder.downsample
  size = min(side * patch, 1024 // patch * patch)
  encoder = None if vit is None else _vit(vit, bagel)
  spread = bagel.get('interpolate_pos', False)
  if not isinstance(spread, bool):
    raise ValueError(f'config.json: interpolate_pos is {spread!r}, neither true nor false.')
  width, heads = (size_of(llm, name, of='llm_config.json') for name in ('hidden_size', 'num_attention_heads'))
  groups = size_of(llm, 'num_key_value_heads', of='llm_config.json')
  if width % heads or heads % groups or size < 1:
    raise ValueError(f'llm_config.json or config.json: {width=}, {heads=}, {groups=}, {size=} do not go together.')
  model = config.ModelConfig(
    vocab_size=size_of(llm, 'vocab_size', of='llm_config.json'),
    width=width,
    depth=depth_of(llm, 'num_hidden_layers', of='llm_config.json'),
    num_heads=heads,
    num_kv_heads=groups,
    head_dim=width // heads,
    mlp_dim=size_of(llm, 'intermediate_size', of='llm_config.json'),
    rope_theta=_number(llm, 'rope_theta', of='llm_config.json', kind=float, at_least=1, at_most=1e12),
    norm_eps=_number(llm, 'rms_norm_eps', of='llm_config.json', kind=float, at_least=1e-20, at_most=1),
    max_latent_size=side,
    image_size=size,
    interpolate_positions=spread,
    # Those of the released model, or the same share of smaller tables.
    codec=config.CodecConfig(
      kind='flux', patch=patch, vae=autoencoder, given_min=min(presets.GIVEN_MIN, patch * side // 2)
    ),
    vit=encoder,
    attention='auto',
    remat='full',
    dtype=dtype,
  )
  return presets.at_image_size(model, size)


def _vit(vit: Mapping[str, Any], bagel: Mapping[str, Any]) -> config.VitConfig:
  """The ViT that vit_config.json and config.json describe. Raises: as `from_released`."""
  size_of = functools.partial(_number, kind=int, at_least=1, at_most=2**24)
  depth_of = functools.partial(_number, kind=int, at_least=1, at_most=1000)
  patch = depth_of(vit, 'patch_size', of='vit_config.json')
  select = _number(bagel, 'vit_select_layer', of='config.json', kind=int, at_least=-1000, at_most=-1, default=-2)
  table = depth_of(bagel, 'vit_max_num_patch_per_side', of='config.json', default=presets.MAX_VIT_PATCHES)
  encoder = config.VitConfig(
    width=size_of(vit, 'hidden_size', of='vit_config.json'),
    # (BAGEL) vit_select_layer -2: the last layer of the file's count is neither built nor stored.
    depth=depth_of(vit, 'num_hidden_layers', of='vit_config.json') + 1 + select,
    num_heads=depth_of(vit, 'num_attention_heads', of='vit_config.json'),
    mlp_dim=size_of(vit, 'intermediate_size', of='vit_config.json'),
    patch=patch,
    max_patches=table,
    image_size=patch,
    given_min=min(presets.GIVEN_MIN_VIT, patch * table // 4),
  )
  if encoder.width % encoder.num_heads or encoder.depth < 1:
    sizes = f'width={encoder.width}, heads={encoder.num_heads}, depth={encoder.depth}'
    raise ValueError(f'vit_config.json or config.json: {sizes} do not go together.')
  return encoder


def _number(
  values: Mapping[str, Any], name: str, *, of: str, kind: type, at_least: float, at_most: float, default: Any = None
) -> Any:
  """A number of a json file. Raises: ValueError naming the file where it is missing, no number, or out of bounds."""
  if name not in values and default is None:
    raise ValueError(f'{of} lacks {name!r}.')
  value = values.get(name, default)
  if kind is float and type(value) is int:
    value = float(value) if abs(value) < 2**63 else value
  if type(value) is not kind or not at_least <= value <= at_most:
    raise ValueError(f'{of}: {name} is {str(value)[:40]!r}, no {kind.__name__} from {at_least:g} to {at_most:g}.')
  return value
