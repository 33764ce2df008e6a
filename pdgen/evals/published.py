"""Figures that others have published, with their source: shown beside ours, never among ours.

None was measured here. They come of other detectors, judges, wordings for judges and numbers of samples than a run of
one's own may have: `docs/evaluation.md` says what can be compared.
"""

import dataclasses
from collections.abc import Mapping

_PAPER = 'arXiv 2604.04746'
_WISE = 'PKU-YuanGroup/WISE, leadboard.md'
_REFLECTION = 'waltstephen/UMM-Reflection, README'


@dataclasses.dataclass(frozen=True)
class Published:
  """A line of someone's table."""

  system: str
  source: str
  values: Mapping[str, float]  # by the names of our figures
  note: str = ''


def _geneval(system: str, source: str, *values: float, note: str = '') -> Published:
  names = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr', 'overall')
  return Published(system, source, dict(zip(names, values, strict=True)), note)


def _wise(system: str, source: str, *values: float, overall: str, note: str = '') -> Published:
  names = ('CULTURE', 'TIME', 'SPACE', 'BIOLOGY', 'PHYSICS', 'CHEMISTRY', overall)
  return Published(system, source, dict(zip(names, values, strict=True)), note)


TABLES: Mapping[str, tuple[Published, ...]] = {
  'geneval': (
    _geneval('process-driven BAGEL-7B (the paper)', _PAPER, 0.99, 0.95, 0.75, 0.87, 0.72, 0.69, 0.83),
    _geneval('BAGEL-7B, as the paper measured it', _PAPER, 0.99, 0.95, 0.76, 0.87, 0.51, 0.56, 0.77),
    _geneval('Janus-Pro-7B', _PAPER, 0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80),
    _geneval('FLUX.1-dev 12B', _PAPER, 0.98, 0.93, 0.75, 0.93, 0.68, 0.65, 0.82),
    Published('UMM-Reflection, RL', _REFLECTION, {'overall': 0.84}, 'up to three repairs'),
    Published('UMM-Reflection, SFT', _REFLECTION, {'overall': 0.72}),
  ),
  'wise_legacy': (
    _wise(
      'process-driven BAGEL-7B (the paper)', _PAPER, 0.74, 0.82, 0.73, 0.70, 0.76, 0.78, 0.76, overall='unweighted'
    ),
    _wise('BAGEL-7B with CoT', _PAPER, 0.76, 0.69, 0.75, 0.64, 0.75, 0.58, 0.70, overall='unweighted'),
    _wise('FLUX.1-dev 12B', _PAPER, 0.48, 0.58, 0.62, 0.42, 0.51, 0.35, 0.50, overall='unweighted'),
    Published('UMM-Reflection, RL', _REFLECTION, {'official': 0.74}, 'which weighting is not said'),
  ),
  'wise_verified': (
    _wise('BAGEL-7B with CoT', _WISE, 0.78, 0.6333, 0.5667, 0.375, 0.55, 0.5083, 0.628, overall='official'),
    _wise('BAGEL-7B', _WISE, 0.4125, 0.35, 0.3083, 0.2, 0.4417, 0.2583, 0.352, overall='official'),
    _wise('FLUX.1-dev 12B', _WISE, 0.5225, 0.4, 0.5333, 0.175, 0.375, 0.2417, 0.416, overall='official'),
    _wise('Janus-Pro-7B', _WISE, 0.37, 0.35, 0.2833, 0.2833, 0.4, 0.2333, 0.334, overall='official'),
  ),
}
