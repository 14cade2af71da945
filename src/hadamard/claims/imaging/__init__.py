"""Claims of the family imaging, one file a method."""
