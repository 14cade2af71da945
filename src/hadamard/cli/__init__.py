"""The ``hadamard`` command."""
