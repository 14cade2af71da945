"""Claims of the family learning, one file a method."""
