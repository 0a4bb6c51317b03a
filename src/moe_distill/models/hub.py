"""A model of the Hugging Face hub, at its pinned revision, as a local folder."""

from pathlib import Path

from huggingface_hub import snapshot_download

from moe_distill.config import HubModel
from moe_distill.errors import DataError
from moe_distill.models.folder import FILE_PATTERNS, copy_model_folder


def snapshot(params: HubModel, output: Path) -> None:
    """Download a model into the hub's own cache, then copy it to `output`.

    The cache lets a broken download resume, although DVC empties `output` before each run, and lets a
    model that is already there be used offline. Pickled weights are not even downloaded.

    Raises:
        DataError: the revision cannot be had, has no safetensors, or needs remote code.
    """
    name = f"{params.repository} at revision {params.revision}"
    try:
        cached = snapshot_download(
            params.repository,
            revision=params.revision,
            allow_patterns=list(FILE_PATTERNS),
            ignore_patterns=["*/*"],  # exports to other formats lie in sub-folders
        )
    except (OSError, ValueError) as error:  # HfHubHTTPError and its kind are OSErrors, a malformed name a ValueError
        raise DataError(
            f"{name} cannot be downloaded",
            " ".join(str(error).split()),
            "check the network, and `repository` and `revision` in the profile's models",
        ) from error
    copy_model_folder(Path(cached), name, output)
