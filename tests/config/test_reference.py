"""docs/parameters.md is what the types say, and says something of every key."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Profile
from moe_distill.config.reference import described, meanings, page
from moe_distill.config.values import Count, Section, Seed, Share
from tests.params import ROOT

ROWS = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]


class Base(Section):
    # not of a key
    first: int


class Both(Base):
    """Of a key above, of a key of several lines, and of none."""

    # above,
    # in two lines
    second: int  # and beside
    third: Annotated[int, Field(ge=0)] = 0  # beside the end
    fourth: str = "# no comment"


def test_the_page_is_as_the_types_are() -> None:
    written = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m moe_distill.config.reference > docs/parameters.md"


def test_every_key_has_a_meaning() -> None:
    assert [row[0] for row in ROWS if not row[3].strip(" |")] == []


def test_every_key_is_there() -> None:
    """Told by pydantic's own schema; `kind` stands in headings."""
    named = {row[0].strip("| `") for row in ROWS}
    for model in (ExperimentParams, Profile):
        schema = model.model_json_schema()
        known = {name for each in [schema, *schema["$defs"].values()] for name in each["properties"]}
        assert known - named <= {"kind"}


def test_comments_above_and_beside_a_key_are_its_meaning() -> None:
    assert meanings(Both) == {
        "first": "not of a key",
        "second": "above, in two lines and beside",
        "third": "beside the end",
        "fourth": "",
    }


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Share | Literal["auto"], "number (≥ 0.0, ≤ 1.0) or `auto`"),
        (str | Count | None, "text or whole number (≥ 0) or null"),
        (Annotated[list[Count], Field(min_length=1)], "list (at least 1 long) of: whole number (≥ 0)"),
        (Annotated[float, Field(gt=1.5, lt=2)], "number (> 1.5, < 2)"),
        (Seed, "whole number (≥ 0, < 2^32)"),
        (dict[str, int] | None, "keys and values or null"),
        (bool, "true or false"),
    ],
)
def test_types_and_ranges_in_words(annotation: object, said: str) -> None:
    assert described(annotation) == said
