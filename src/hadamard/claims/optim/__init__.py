"""Claims of the family optim, one file a method."""
