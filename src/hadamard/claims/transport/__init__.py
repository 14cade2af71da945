"""Claims of the family transport, one file a method."""
