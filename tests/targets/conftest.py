from tests.shards.conftest import targets
from tests.stores import stores

__all__ = ["stores", "targets"]
