"""A model of the Hugging Face hub, at one commit, as a local folder."""

from pathlib import Path

from huggingface_hub import DryRunFileInfo, constants, snapshot_download
from huggingface_hub.errors import DryRunError

from moe_distill.config.model_keys import HubModel
from moe_distill.errors import DataError, MoeDistillError
from moe_distill.models.model_folder import FILE_PATTERNS, SMALLER, copy_model_folder
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.hub_commits import record_commit, recorded_commit

FETCHED = [*FILE_PATTERNS, "README.md"]  # the card stays in the hub's cache, for `source_card`
# Exports to other formats lie in sub-folders; of an adapter only its settings come, so that `copy_model_folder` tells.
IGNORED = ["*/*", "adapter_model*", "consolidated*.safetensors"]


def snapshot(params: HubModel, output: Path) -> None:
    """Download a model into the hub's own cache, then copy it to `output`.

    From the cache a broken download resumes, although DVC empties `output` before each run, and a model that is already
    there is used offline. Pickled weights are not downloaded. A branch or tag is followed once: its commit is recorded.

    Raises:
        DataError: the revision cannot be downloaded, has no safetensors, or needs remote code.
        ResourceError: the disk cannot take the download and the copy.
    """
    revision = recorded_commit("model", params.repository, params.revision)
    name = f"{params.repository} at revision {revision}"
    try:
        _require_space(_planned(params.repository, revision), name, output)
        cached = Path(
            snapshot_download(params.repository, revision=revision, allow_patterns=FETCHED, ignore_patterns=IGNORED)
        )
    except MoeDistillError:
        raise
    except Exception as error:  # of the hub or of the HTTP library below it, whichever it is
        raise DataError(
            f"{name} cannot be downloaded",
            " ".join(str(error).split()),
            "check the network, and `repository` and `revision` in the profile's models",
        ) from error
    copy_model_folder(cached, name, output, params.prefix_token)
    record_commit("model", params.repository, params.revision, cached.name)  # the cache's folder of a snapshot


def _planned(repository: str, revision: str) -> list[DryRunFileInfo]:
    """The model's files with their sizes; none where the hub is out of reach, since nothing is downloaded then."""
    try:
        return snapshot_download(
            repository,
            revision=revision,
            allow_patterns=FETCHED,
            ignore_patterns=IGNORED,
            dry_run=True,
        )
    except DryRunError:
        return []


def _require_space(files: list[DryRunFileInfo], name: str, output: Path) -> None:
    """Refuse a model that the disk of the hub's cache, or that of `output`, cannot take; they may be one disk."""
    output.mkdir(parents=True, exist_ok=True)
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    copied = sum(file.file_size or 0 for file in files)
    fetched = sum(file.file_size or 0 for file in files if file.will_download)
    is_one_disk = cache.stat().st_dev == output.stat().st_dev
    require_space(output, copied + fetched if is_one_disk else copied, name, SMALLER)
    require_space(cache, fetched, name, f"{SMALLER}, or set HF_HOME to another disk")
