"""JSON objects with a checksum of their own content, so that a flipped bit in an index or record is found."""

import json
from collections.abc import Mapping
from pathlib import Path

from moe_distill.errors import DataError, restore_command
from moe_distill.utils.files import Json, fingerprint, write_json

CHECKSUM_KEY = "sha256"


def write_checksummed_json(path: Path, content: Mapping[str, Json]) -> None:
    """Write a JSON object with one more key, `sha256`: the fingerprint of all other keys."""
    write_json(path, {**content, CHECKSUM_KEY: fingerprint(content)})


def read_json_object(path: Path) -> dict[str, Json]:
    """Read a JSON object, checksum included, and check it where it has one.

    It is checked before a caller looks at the version, so that a corrupt file is not taken for one of another version.

    Raises:
        DataError: the file is not a JSON object, or differs from its checksum.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path} is not JSON", str(error), restore_command(path)) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object", fix=restore_command(path))
    if CHECKSUM_KEY in content:
        verified_content(path, content)
    return content


def verified_content(path: Path, content: Mapping[str, Json]) -> dict[str, Json]:
    """The content without its checksum.

    Raises:
        DataError: the content has no checksum or differs from it; names both hashes.
    """
    rest = {key: value for key, value in content.items() if key != CHECKSUM_KEY}
    found, recorded = fingerprint(rest), content.get(CHECKSUM_KEY)
    if found != recorded:
        raise DataError(f"{path} is corrupt", f"sha256 {found}, it says {recorded}", restore_command(path))
    return rest
