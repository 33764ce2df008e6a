"""What every other folder of pdgen may import; nothing here imports the rest of pdgen.

Legend of the shapes, used in every docstring and einsum of the project:

    B batch (rows)      T query tokens     S key tokens (cache slots)   D width
    N query heads       K kv heads         H head dim                   F mlp dim
    L layers            U und tokens       G gen tokens                 C latent channels of a token
    P pictures a row    Q patches a picture copy                        V vocabulary
"""
