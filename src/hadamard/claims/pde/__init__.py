"""Claims of the family pde, one file a method."""
