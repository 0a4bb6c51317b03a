"""Which commit a branch or tag of the Hugging Face hub was when it was first downloaded.

The hub moves branches; a run that takes weeks, or is done again, must not move with them. The file lies beside the
profiles' data in the main checkout, is not ignored by git, and is worth a commit.
"""

import json
import re
from pathlib import Path
from typing import Literal

from moe_distill.errors import DataError
from moe_distill.utils.files import project_root, write_json

COMMITS = Path("data/hub_commits.json")
Kind = Literal["model", "dataset"]


def is_commit(revision: str) -> bool:
    """Whether a revision is the full hash of a commit, which never moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def recorded_commit(kind: Kind, repository: str, revision: str) -> str:
    """The commit that this revision was at its first download; the revision itself where none is recorded.

    Raises:
        DataError: the record cannot be read.
    """
    return revision if is_commit(revision) else _recorded().get(_key(kind, repository, revision), revision)


def record_commit(kind: Kind, repository: str, revision: str, commit: str) -> None:
    """Record what a branch or tag is, unless a record says what it was; a commit needs none."""
    if not is_commit(revision) and is_commit(commit):
        write_json(project_root() / COMMITS, {_key(kind, repository, revision): commit} | _recorded())


def command_for_commit(kind: Kind, repository: str, revision: str) -> str:
    """The command that prints the commit of a branch or tag."""
    folder = "datasets/" if kind == "dataset" else ""
    return f"git ls-remote https://huggingface.co/{folder}{repository} {revision}"


def _key(kind: Kind, repository: str, revision: str) -> str:
    return f"{kind} {repository} {revision}"


def _recorded() -> dict[str, str]:
    path = project_root() / COMMITS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(is_commit(str(commit)) for commit in found.values()):
            raise ValueError("it must hold a commit for each revision")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be used", str(error), "restore it from git, or remove it") from error
    return {str(key): str(commit) for key, commit in found.items()}
