"""Claims of the family transforms, one file a method."""
