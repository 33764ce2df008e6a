"""The three training subsets as photographs: FLUX Kontext paints, an OpenAI-compatible model writes and judges.

export BFL_API_KEY=.. OPENAI_API_KEY=..
python -m pdgen.construct build --config=configs/construct_photographic.py --subset=multi_turn --out=out/m --dry_run
"""

from pdgen.construction import build_config, taxonomy
from pdgen.services import budget, transport

# Prices of November 2026: look before you build (--config.judge.price.prompt=..).
_CHAT = budget.Price(prompt=2.5, completion=10.0)


def get_config():
  chat = transport.Endpoint(
    base_url='https://api.openai.com/v1', model='gpt-4o', key_env='OPENAI_API_KEY', concurrency=16
  )
  flux = transport.Endpoint(
    base_url='https://api.bfl.ai/v1', model='flux-kontext-pro', key_env='BFL_API_KEY', concurrency=24
  )
  return build_config.to_config_dict(
    build_config.BuildConfig(
      name='photographic',
      scenes=build_config.ScenesConfig(graphs=taxonomy.Shares(groups=(2, 4))),
      renderer=build_config.RendererConfig(
        name='flux_kontext', endpoint=flux, price=budget.Price(picture=0.04), size=(512, 512)
      ),
      writer=build_config.WriterConfig(name='openai', endpoint=chat, price=_CHAT),
      judge=build_config.JudgeConfig(name='openai', endpoint=chat, price=_CHAT),
      budget=build_config.BudgetConfig(money=100.0),  # A first look; the whole takes thousands.
      work=build_config.WorkConfig(threads=24),
      shard_records=100,
      # --config.conflict.checkpoint=WORKDIR of a run on multi_turn: its own conflicts, in place of injected ones.
      # --config.alignment.source=FOLDER --config.alignment.source_share=1.0: pictures of Gen-Ref.
    )
  )
