"""Benchmarks that are run by hand, and rarely."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NEEDS = {"uld_child": "trl"}  # of an environment of its own


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_each_finds_what_it_imports(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    import_module(name)
