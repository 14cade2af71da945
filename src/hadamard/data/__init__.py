"""Real data that installs from packages, and honest generators, each with its provenance."""
