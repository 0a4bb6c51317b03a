"""Errors with a known cause: what happened, why, and the command to run or the key to change.

Each class has the exit code of a stage that ends with it. Any other exception that ends a stage is a bug of this
project, and its traceback is shown.
"""

from collections.abc import Sequence
from pathlib import Path


class MoeDistillError(Exception):
    """A failure with a known cause; printed as one line, without a traceback.

    Args:
        what: what happened, with the path or key it happened to.
        why: the values that were found and expected, or the message of a library.
        fix: the command to run, or the key to change.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("; ".join(part for part in (what, why, fix) if part))


class ConfigError(MoeDistillError):
    """A key of params.yaml or a profile is missing, misspelt or ill-typed."""

    exit_code = 2


class DataError(MoeDistillError):
    """Input text, windows or shards are unusable, stale or corrupt."""

    exit_code = 3


class ResourceError(MoeDistillError):
    """The machine lacks something: disk, memory, a GPU kernel, or a free lock."""

    exit_code = 4


class DivergenceError(MoeDistillError):
    """Training met too many non-finite losses or gradients in a row."""

    exit_code = 5


def together(found: Sequence[MoeDistillError]) -> MoeDistillError:
    """One error that tells several, each on a line of its own; it is of the class of the first."""
    first = found[0]
    if len(found) == 1:
        return first
    return type(first)("\n  ".join([f"{len(found)} things are wrong:", *map(str, found)]))


def restore_command(path: Path) -> str:
    """The commands that restore a corrupt file of an output, as the `fix` of an error.

    DVC takes a file of unchanged size and time for unchanged, and its cache may hold the same corrupt bytes. Both
    copies must be removed before `dvc pull` or `dvc repro -f` can restore the file.
    """
    return f"run: moe-distill recover --shard {path}; then: dvc pull, or dvc repro"
