"""Claims of the certification methods."""
