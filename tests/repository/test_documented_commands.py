"""Every `moe-distill`, `dvc` and `make` command that README.md and docs/tutorial.md name is there, with its options."""

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest
from dvc.cli import DvcParserError, parse_args  # type: ignore[import-untyped]
from typer.main import get_command

from moe_distill.cli import app
from tests.params import ROOT

PAGES = ("README.md", "docs/tutorial.md", "CONTRIBUTING.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("moe-distill", "dvc", "make")


def commands_of(page: str) -> Iterator[list[str]]:
    """The words of each command in a page's code blocks and between its backticks, of the programs above."""
    for language, block in BLOCK.findall(page):
        for line in block.splitlines() if language in ("", "bash") else ():
            yield from _commands_in(line)
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", BLOCK.sub("", page)):
        yield from _commands_in(code)


def _commands_in(line: str) -> Iterator[list[str]]:
    if not any(program in line for program in PROGRAMS):
        return
    placed = re.sub(r"<[^<>]*>", "PLACEHOLDER", line)
    words = shlex.shlex(placed, posix=True, punctuation_chars=";&|()")
    words.whitespace_split = True
    command = list[str]()
    for word in [*words, ";"]:
        if set(word) <= set(";&|()"):
            if len(command) > 1 and command[0] in PROGRAMS:
                yield command
            command = []
        else:
            command.append(word)


def fault(command: list[str]) -> str | None:
    """What is wrong with a command; nothing is run."""
    program, *words = command
    return {"moe-distill": _own_fault, "dvc": _dvc_fault, "make": _make_fault}[program](words)


def _own_fault(words: list[str]) -> str | None:
    group = get_command(app)
    for each in group.commands.values():  # type: ignore[attr-defined]
        each.callback = lambda **_values: None
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as left:
        group.main(words, prog_name="moe-distill")
    return said.getvalue() if left.value.code else None


def _dvc_fault(words: list[str]) -> str | None:
    try:
        parse_args(words)
    except (DvcParserError, SystemExit) as error:
        return str(error)
    return None


def _make_fault(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_setting, _ = word.partition("=")
        if not re.search(rf"^{name} \?=" if is_setting else rf"^{name}:", makefile, re.MULTILINE):
            return f"no {name} in the Makefile"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_with_its_options(page: str) -> None:
    found = list(commands_of((ROOT / page).read_text(encoding="utf-8")))
    assert found
    assert [(" ".join(each), said) for each in found if (said := fault(each))] == []


def test_every_command_stands_on_a_page() -> None:
    found = [words for page in PAGES for words in commands_of((ROOT / page).read_text(encoding="utf-8"))]
    named = {name for program, name, *_ in found if program == "moe-distill"}  # `make ui` is none
    assert set(get_command(app).commands) - named == set()  # type: ignore[attr-defined]


def test_commands_are_found_in_blocks_and_between_backticks() -> None:
    block = "make run A=<what you like> # dvc no\n(dvc repro; moe-distill plan) | tee x"
    page = f"```mermaid\nmake no\n```\nRun `dvc pull a` or `x`, with `make`.\n```bash\n{block}\n```\n"
    commands = [" ".join(each) for each in commands_of(page)]
    assert commands == ["make run A=PLACEHOLDER", "dvc repro", "moe-distill plan", "dvc pull a"]


@pytest.mark.parametrize(
    "command",
    [
        "moe-distill plam",
        "moe-distill plan --shown 3",
        "moe-distill plan --show three",
        "moe-distill generate",
        "moe-distill --versio",
        "dvc metric show",
        "dvc exp run --set-parameter a=1",
        "make runn",
        "make run TORCHES=1",
    ],
)
def test_what_does_not_exist_is_found(command: str) -> None:
    assert fault(command.split())


@pytest.mark.parametrize(
    "command", ["moe-distill --version", "moe-distill plan --show 3", "dvc exp run -S a=1", "make run TORCH=x"]
)
def test_what_exists_is_no_fault(command: str) -> None:
    assert fault(command.split()) is None
