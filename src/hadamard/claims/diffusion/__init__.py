"""Claims of the family diffusion, one file a method."""
