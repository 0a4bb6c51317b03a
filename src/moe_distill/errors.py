"""Errors a user can mend: what happened, why, and the one command or key to change.

Each class carries the exit code of the stage that ends with it. Anything else that escapes a stage
is a defect of this project and keeps its traceback.
"""

from pathlib import Path


class MoeDistillError(Exception):
    """A failure with a known cause; printed as one line, without a traceback."""

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


def repair(path: Path) -> str:
    """How to bring back an output's file that is not as it was written.

    DVC trusts a file whose size and time are as before, and its cache holds the same bytes: neither `dvc pull` nor
    `dvc repro -f` mends it before they are removed.
    """
    return f"run: moe-distill recover --shard {path}; then: dvc pull, or dvc repro"
