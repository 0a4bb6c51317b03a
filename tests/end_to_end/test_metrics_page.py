"""docs/metrics.md has every figure that a run leaves, and none that no run does."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Checkout
from tests.params import ROOT

HEADING, ROW = re.compile(r"^## (.+)$", re.MULTILINE), re.compile(r"^\| (`.+?) \| .* \| (.*?) ?\|$", re.MULTILINE)
PLACES = {"<e>": r"\d+", "<term>": "[a-z_]+", "<source>": ".+"}


def names_of(page: str) -> dict[str, dict[str, str]]:
    """Heading -> name, as a regular expression -> when it is there (empty: always)."""
    parts = HEADING.split(page)[1:]
    found: dict[str, dict[str, str]] = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        rows = [(name, when) for names, when in ROW.findall(text) for name in re.findall(r"`([^`]+)`", names)]
        for file in re.split(", ", heading):
            found[file] = {pattern(name): when for name, when in rows}
    return found


def pattern(name: str) -> str:
    for place, expression in PLACES.items():
        name = name.replace(place, expression)
    return name


@pytest.mark.usefixtures("first_run")
def test_the_page_and_the_figures_of_a_run_are_the_same(checkout: Checkout) -> None:
    pages = names_of((ROOT / "docs/metrics.md").read_text(encoding="utf-8"))
    files = sorted((checkout.folder / "metrics").glob("*.json"))
    assert {f"metrics/{path.name}" for path in files} == {*pages, "metrics/summary.json"} - {"metrics/curves"}
    for path in files:
        known = pages["metrics/evaluate.json" if path.stem == "summary" else f"metrics/{path.name}"]
        figures = json.loads(path.read_text(encoding="utf-8"))
        assert unknown(figures, known, path) == set()
        if path.stem != "summary":
            assert missing(figures, known) == set(), path
    columns = set[str]()
    for path in (checkout.folder / "metrics/curves").glob("*.tsv"):
        found = next(csv.reader(path.open(encoding="utf-8"), delimiter="\t"))
        assert unknown(found, pages["metrics/curves"], path) == set()
        columns |= set(found)
    assert missing(columns, pages["metrics/curves"]) == set()


def unknown(names: object, known: dict[str, str], path: Path) -> set[str]:
    assert isinstance(names, dict | list)
    source = "(python_docs_)?" if path.stem == "corpus" else ""
    return {name for name in names if not any(re.fullmatch(source + each, name) for each in known)}


def missing(names: object, known: dict[str, str]) -> set[str]:
    assert isinstance(names, dict | set)
    always = {each for each, when in known.items() if not when}
    return {each for each in always if not any(re.fullmatch(each, name) for name in names)}
