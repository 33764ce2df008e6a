"""What every other folder of pdgen may import; nothing here imports the rest of pdgen.

Legend of the shapes, used in every docstring and einsum of the project:

    B batch (rows)      T query tokens     S key tokens (cache slots)   D width
    N query heads       K kv heads         H head dim                   F mlp dim
    L layers            U und tokens       G gen tokens                 C latent channels of a token
    P pictures a row    Q patches a picture copy                        V vocabulary
    E output tokens of a trajectory        M pictures of a trajectory   R rows of ViT patches

    [.., H, W, 3] is a picture: height, width, colors. [N, H, W, C] is what convolutions see: N pictures, C channels.

Marks, where a reader would ask why something is as it is:

    (paper)     stated in "Think in Strokes, Not Pixels", arXiv 2604.04746
    (BAGEL)     as in the public reference code of BAGEL-7B-MoT
    (ours)      decided here: paper and reference are silent
    QUIRKS n    item n of tests/golden/QUIRKS.md: what must match the reference, and which of its bugs must not

docs/design.md has the design of the whole; docs/experiments.md what was tried and how it went.
"""
