"""Small stores, as other packages' tests have them."""

from tests.stores import stores

__all__ = ["stores"]
