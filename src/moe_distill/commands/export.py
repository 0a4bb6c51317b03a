"""`moe-distill export`: the finished student, its tokenizer and its card as one folder, and on the hub where asked."""

import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not re-exported

from moe_distill.commands.generate import require_model
from moe_distill.commands.verify import verify_output
from moe_distill.errors import ConfigError, DataError, MoeDistillError
from moe_distill.models.source_card import CARD_NAME
from moe_distill.reporting.model_card import STUDENT
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import fresh_folder

CAUSES = {401: "no valid token; log in with: hf auth login", 403: "this account has no right to write there"}


def export(student: Path, to: Path) -> None:
    """Copy a finished student to the folder `to`; the usage in its card names that folder then.

    Raises:
        DataError: there is no finished student, it is not as dvc.lock records it, or `to` is a file, a folder with
            something in it or where a disk is mounted, or cannot be made.
        ResourceError: the disk cannot take it.
    """
    require_model(student)
    if not (student / CARD_NAME).is_file():
        raise DataError(f"{student} has no {CARD_NAME}", "it is not evaluated yet", "run: dvc repro student")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = f"{to} is not empty" if to.is_dir() else f"{to} is a file"
        raise DataError(what, fix="give a folder that is empty or not there, or remove it first")
    place = to.resolve()  # where a link leads to
    if place.is_mount():
        raise DataError(f"{to} is where a disk is mounted", "no folder can be put in its place", f"give {to}/student")
    for each in verify_output(Path(), student):
        if each.fault is not None:
            fix = f"run: dvc checkout {student}, or dvc repro, and export again"
            raise DataError(f"{each.path} is not what dvc.lock records", "it was changed, or is damaged", fix)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{to} cannot be made", error.strerror or str(error), "give another folder") from error
    files = [path for path in sorted(student.iterdir()) if path.is_file()]
    require_space(place.parent, sum(path.stat().st_size for path in files), str(to), "choose another disk")
    with fresh_folder(place) as folder:
        for path in files:
            shutil.copyfile(path, folder / path.name)  # no link: what is exported may be edited
        card = (student / CARD_NAME).read_text(encoding="utf-8")
        (folder / CARD_NAME).write_text(card_for(card, STUDENT, str(to)), encoding="utf-8")


def card_for(card: str, old: str, new: str) -> str:
    """A card whose usage names another folder, or a repository, and so runs as printed."""
    named = card.replace(f"name = {json.dumps(old)}\n", f"name = {json.dumps(new)}\n")
    return named.replace(f"pretrained={old},", f"pretrained={new},")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder to a model repository of the Hugging Face hub, which is made where it is not there.

    Args:
        private: whether a new repository is; one that is there and public is refused then.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the repository's name is none.
        DataError: the hub refuses, or is out of reach; what was exported stays.
    """
    require_repository(repository)
    card = card_for((folder / CARD_NAME).read_text(encoding="utf-8"), str(folder), repository)
    contents = {path.name: str(path) for path in sorted(folder.iterdir())} | {CARD_NAME: card.encode()}
    files = [CommitOperationAdd(name, content) for name, content in contents.items()]
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        is_public = not api.model_info(repository).private
        if private and is_public:
            raise DataError(f"{repository} is there and public", fix="leave out --private, or give another name")
        return str(api.create_commit(repository, files, commit_message="Distilled student").commit_url)
    except MoeDistillError:
        raise
    except Exception as error:  # of the hub, its HTTP library, the network; no token; a name: the export is whole
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = CAUSES.get(status, "") if isinstance(status, int) else ""
        raise DataError(
            f"{repository} cannot be written on the hub",
            why or " ".join(str(error).split())[:200],
            f"the export in {folder} is whole; when that is put right: hf upload {repository} {folder}",
        ) from error


def require_repository(repository: str) -> None:
    """Refuse a name that no repository of the hub can have, before anything is copied.

    Raises:
        ConfigError: it is not OWNER/NAME.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push {repository}", str(error), "give OWNER/NAME") from error
    if repository.count("/") != 1:
        raise ConfigError(f"--push {repository} names no owner", fix="give OWNER/NAME")
