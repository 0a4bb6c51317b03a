"""Fingerprints of the local files that a profile names: text of kind `files`, models of kind `folder`.

DVC knows only the dependencies in dvc.yaml, and these paths stand in the profile. So the stage `check`, which always
runs, writes fingerprints of their content to data/sources.json, and the stages that read them depend on them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moe_distill.config.corpus_keys import Corpus, Files
from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.profile import Profile
from moe_distill.corpus.local_files import LocalFile, local_files
from moe_distill.errors import DataError
from moe_distill.log import log
from moe_distill.models.model_folder import model_files
from moe_distill.pipeline.dvc_lock import recorded_stages
from moe_distill.utils.files import fingerprint, fingerprint_each, project_root, sha256_file

OUTPUT = Path("data/sources.json")
NOTHING_LOCAL = "none"
Model = TinyTeacher | TinyStudent | HubModel | FolderModel
Recorded = str | Mapping[str, str]
STAGES = {
    "corpus": "corpus",
    "teacher": "models@teacher",
    "student": "models@student",
}  # key -> its stage


def local_inputs(profile: Profile) -> dict[str, Recorded]:
    """The content of data/sources.json: fingerprints of the names and bytes of local files.

    For teacher and student it is one, for the corpus one of each of its `paths`. Where a path is not here, the
    fingerprint is the one in dvc.lock: a clone that has pulled windows and shards trains without the text that they
    were made from, and an edit to another path is still seen.

    Raises:
        DataError: a path is not here and no stage has ever read it, or a file cannot be read.
    """
    return {
        "corpus": _texts(profile.corpus),
        "teacher": _weights("teacher", profile.models.teacher),
        "student": _weights("student", profile.models.student),
    }


def _texts(corpus: Corpus) -> Recorded:
    """Fingerprint of each path of a local source."""
    paths = dict.fromkeys(path for source in corpus.sources if isinstance(source, Files) for path in source.paths)
    return {path: _text(path) for path in paths} if paths else NOTHING_LOCAL


def missing_inputs(profile: Profile) -> list[DataError]:
    """An error for each path of the profile that is not here, and that no stage has ever read; nothing is read."""
    found = list[DataError]()
    paths = [path for source in profile.corpus.sources if isinstance(source, Files) for path in source.paths]
    checks: list[Callable[[], object]] = [partial(_text_files, path) for path in dict.fromkeys(paths)]
    for role, model in (("teacher", profile.models.teacher), ("student", profile.models.student)):
        if isinstance(model, FolderModel):
            checks.append(partial(_weights_folder, role, model))
    for check in checks:
        try:
            check()
        except DataError as error:
            found.append(error)
    return found


def _text(path: str) -> str:
    files = _text_files(path)
    if isinstance(files, str):
        log(f"check: `{path}` of the corpus is not here; the corpus is made again only if something else of it changes")
        return files
    return fingerprint_each([file.name, _sha256(file.path)] for file in files)


def _text_files(path: str) -> Iterator[LocalFile] | str:
    """The files of a path; where it is not here, the fingerprint that it had when it was read last."""
    try:
        return local_files([path])
    except DataError:
        recorded = _recorded("corpus")
        if not isinstance(recorded, Mapping) or path not in recorded:
            raise
        if (project_root() / path).exists():  # it is here, and something is wrong with it
            raise
        return recorded[path]


def _weights(role: str, model: Model) -> str:
    """Fingerprint of a model's local folder."""
    if not isinstance(model, FolderModel):
        return NOTHING_LOCAL
    folder = _weights_folder(role, model)
    if isinstance(folder, str):
        log(f"check: the {role}'s folder {model.path} is not here; it is read again only if its parameters change")
        return folder
    return fingerprint({path.name: _sha256(path) for path in model_files(folder)})


def _weights_folder(role: str, model: FolderModel) -> Path | str:
    """A model's folder; where it is not here, the fingerprint that it had when it was read last."""
    folder = project_root() / model.path
    if folder.is_dir():
        return folder
    recorded, of_path = _recorded(role), _recorded_path(role)
    if not isinstance(recorded, str) or recorded == NOTHING_LOCAL or of_path not in (None, model.path):
        fix = f"change `models.{role}.path` in the profile; a relative path is below {project_root()}"
        raise DataError(f"{model.path} is no folder", fix=fix)
    return recorded


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", error.strerror or str(error), "give it the rights to be read"
        ) from error


def _recorded(name: str) -> Recorded | None:
    """What its stage ran with last; None before its first run."""
    found: Recorded | None = _recorded_params(name).get(OUTPUT.as_posix(), {}).get(name)
    return found


def _recorded_path(role: str) -> str | None:
    """The folder that a model was last taken from; None where that is not recorded."""
    of_profiles = [keys for file, keys in _recorded_params(role).items() if file.startswith("profiles/")]
    found: str | None = next((keys.get(f"models.{role}", {}).get("path") for keys in of_profiles), None)
    return found


def _recorded_params(name: str) -> dict[str, Any]:
    params: dict[str, Any] = recorded_stages(Path()).get(STAGES[name], {}).get("params", {})
    return params
