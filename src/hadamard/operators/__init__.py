"""Linear maps with ``A``, ``A_adjoint`` and ``A_dagger``: composition, batching, autograd."""
