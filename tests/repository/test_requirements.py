"""docs/requirements.md is true: each row is there once and names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (R\d+) \|(.*)\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NUMBERS = range(1, 31)


def named_tests(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each row's number with the tests that it names, as (file, function)."""
    return [(number, TEST.findall(text)) for number, text in ROW.findall(page)]


def functions_of(file: str) -> set[str]:
    """The functions at the top of a test file; none where there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def faults(page: str) -> list[str]:
    """What is wrong with the page: a line for each fault."""
    rows = named_tests(page)
    found = []
    if [number for number, _ in rows] != [f"R{number}" for number in NUMBERS]:
        found.append(f"rows are {', '.join(number for number, _ in rows)}")
    for number, tests in rows:
        if not any(f"_r{int(number[1:]):02d}_" in name for _, name in tests):
            found.append(f"{number} names no test of its own")
        found += [f"{number}: {file} has no {name}" for file, name in tests if name not in functions_of(file)]
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs/requirements.md").read_text(encoding="utf-8")


def test_every_requirement_is_proven_by_a_test_that_exists(page: str) -> None:
    assert faults(page) == []


def test_wrong_rows_and_names_are_found(page: str) -> None:
    wrong_name = page.replace("test_r08_a_run_of", "test_r08_the_run_of")
    assert faults(wrong_name) == [
        "R8: tests/training/test_loop_parts.py has no test_r08_the_run_of_25_000_steps_stays_under_5_000_lines"
    ]
    wrong_file = page.replace("tests/losses/test_kd.py", "tests/losses/test_no.py")
    assert faults(wrong_file) == [
        "R7: tests/losses/test_no.py has no test_r07_truncated_kl_keeps_the_residual_as_one_bucket"
    ]
    assert faults(page.replace("| R30 |", "| R29 |"))[0].endswith("R28, R29, R29")
    r08 = "`tests/training/test_loop_parts.py::test_r08_a_run_of_25_000_steps_stays_under_5_000_lines`"
    assert faults(page.replace(r08, "")) == ["R8 names no test of its own"]
