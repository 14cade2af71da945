"""Claims of the family distributed, one file a method."""
