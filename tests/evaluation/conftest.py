from tests.stores import stores

__all__ = ["stores"]
