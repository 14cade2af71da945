"""``hadamard apply KEY``: one module a method that has a natural file form."""
