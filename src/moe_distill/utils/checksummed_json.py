"""JSON that carries a hash of itself: one flipped bit in an index is found as surely as one in a shard."""

import json
from collections.abc import Mapping
from pathlib import Path

from moe_distill.errors import DataError, repair
from moe_distill.utils.files import Json, fingerprint, write_json

CHECKSUM_KEY = "sha256"


def write_checksummed_json(path: Path, content: Mapping[str, Json]) -> None:
    """Write a JSON object with one more key, `sha256`: the fingerprint of all others."""
    write_json(path, {**content, CHECKSUM_KEY: fingerprint(content)})


def read_json_object(path: Path) -> dict[str, Json]:
    """Read a JSON object as it is; a seal that it carries is checked, so that damage never passes for another version.

    Raises:
        DataError: the file is not a JSON object, or differs from its seal.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path} is not JSON", str(error), repair(path)) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object", fix=repair(path))
    if CHECKSUM_KEY in content:
        verified_content(path, content)
    return content


def verified_content(path: Path, content: Mapping[str, Json]) -> dict[str, Json]:
    """The content without its seal, which it must have.

    Raises:
        DataError: the content differs from its seal; names both hashes.
    """
    rest = {key: value for key, value in content.items() if key != CHECKSUM_KEY}
    found, recorded = fingerprint(rest), content.get(CHECKSUM_KEY)
    if found != recorded:
        raise DataError(f"{path} is corrupt", f"sha256 {found}, it says {recorded}", repair(path))
    return rest
