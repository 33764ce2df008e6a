"""The three training subsets in the world of shapes, exact: 6,000 samples with the paper's shares of + and -.

python -m pdgen.construct build --config=configs/construct_shapes.py --subset=multi_turn --out=out/multi_turn
"""

from pdgen.construction import build_config, taxonomy


def get_config():
  return build_config.to_config_dict(
    build_config.BuildConfig(
      name='shapes',
      world='shapes',
      scenes=build_config.ScenesConfig(
        world=0.3,  # Prompts that the world scores; drawn graphs make the paintings as long as the paper's.
        drawn=0.7,
        graphs=taxonomy.Shares(groups=(4, 5), counted=0.1, most=2, relation=0.4, second=0.0),
      ),
      multi_turn=build_config.MultiTurnConfig(samples=3000),
      conflict=build_config.ConflictConfig(
        samples=1500,
        negative=819,  # (paper) 8,296 of 15,201
        checkpoint='shapes',
        temperature=1.0,  # A greedy model seldom contradicts a prompt that it was trained on.
      ),
      alignment=build_config.AlignmentConfig(samples=1500, negative=1000),
    )
  )
