"""Claims of the family compression, one file a method."""
