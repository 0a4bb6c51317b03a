"""Benchmarks run by hand, and rarely."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_finds_what_it_imports(name: str) -> None:
    import_module(name)
