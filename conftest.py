"""What every test, doctests included, needs before it imports anything."""


def pytest_sessionstart():
    """Let diffusers and timm be imported where torchvision's binary does not fit torch."""
    from hadamard.claims.torchvision_shim import install

    install()
