"""Claims of the family layers, one file a method."""
