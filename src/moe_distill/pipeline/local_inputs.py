"""Fingerprints of the local files that a profile names: text of kind `files`, models of kind `folder`.

DVC knows only the dependencies in dvc.yaml, and these paths stand in the profile. So the stage `check`, which always
runs, writes a fingerprint of their content to data/sources.json, and the stages that read them depend on it.
"""

from pathlib import Path

from moe_distill.config.profile import Corpus, Files, FolderModel, HubModel, Profile, TinyStudent, TinyTeacher
from moe_distill.corpus.local_files import local_files
from moe_distill.errors import DataError
from moe_distill.log import log
from moe_distill.models.model_folder import model_files
from moe_distill.pipeline.dvc_lock import recorded_stages
from moe_distill.utils.files import fingerprint, project_root, sha256_file

OUTPUT = Path("data/sources.json")
NOTHING_LOCAL = "none"
Model = TinyTeacher | TinyStudent | HubModel | FolderModel
STAGES = {
    "corpus": "corpus",
    "teacher": "models@teacher",
    "student": "models@student",
}  # key -> its stage


def local_inputs(profile: Profile) -> dict[str, str]:
    """The content of data/sources.json: for corpus, teacher and student a fingerprint of local files' names and bytes.

    Where a path does not exist, the fingerprint is the one in dvc.lock: a clone that has pulled windows and shards
    trains without the text that they were made from.
    """
    found = {
        "corpus": _texts(profile.corpus),
        "teacher": _weights(profile.models.teacher),
        "student": _weights(profile.models.student),
    }
    return {name: _recorded(name) if content is None else content for name, content in found.items()}


def _texts(corpus: Corpus) -> str | None:
    """Fingerprint of the local texts; None: a path matches nothing."""
    paths = [source.paths for source in corpus.sources if isinstance(source, Files)]
    if not paths:
        return NOTHING_LOCAL
    try:
        files = [[[file.name, sha256_file(file.path)] for file in local_files(each)] for each in paths]
    except DataError:
        return None
    return fingerprint(files)


def _weights(model: Model) -> str | None:
    """Fingerprint of a model's local folder; None: there is no such folder."""
    if not isinstance(model, FolderModel):
        return NOTHING_LOCAL
    folder = project_root() / model.path
    return fingerprint({path.name: sha256_file(path) for path in model_files(folder)}) if folder.is_dir() else None


def _recorded(name: str) -> str:
    """The fingerprint with which the stage ran last; `none` before its first run, which then names what is missing."""
    log(f"check: local files of `{name}` are not here; it is made again only if its parameters change")
    recorded = recorded_stages(Path()).get(STAGES[name], {}).get("params", {}).get(OUTPUT.as_posix(), {})
    return str(recorded.get(name, NOTHING_LOCAL))
