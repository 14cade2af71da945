"""Small trained networks that come with the package, as safetensors files with their provenance."""
