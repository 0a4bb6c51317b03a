"""Disk space: checked before a long stage begins, and reported in one line where it runs out all the same."""

import errno
import re
import shutil
from pathlib import Path

from moe_distill.errors import ResourceError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no quota, a limit on the size of a file
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # the end of such a message of a Rust library
MIB = 2**20


def require_space(folder: Path, n_bytes: int, what: str, fix: str) -> None:
    """Refuse a stage that will write more than the disk of `folder` has free.

    Args:
        n_bytes: estimate of what will be written on top of what is there.
        what: name of what is written, for the error.
        fix: the key to change; the error also says to free space.

    Raises:
        ResourceError: naming both sizes.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ResourceError(
            f"{what} will take {n_bytes / MIB:,.0f} MiB",
            f"{folder} has {free / MIB:,.0f} MiB free",
            f"free some, or {fix}",
        )


def disk_full(error: Exception) -> ResourceError | None:
    """The error to show where `error` is about a full disk or quota; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if found := OS_ERROR.search(str(error)):
        code = int(found[1])
    if code not in FULL:
        return None
    return ResourceError(
        "the disk is full", " ".join(str(error).split()), "free some space; the same command continues"
    )


def read_only(error: Exception) -> ResourceError | None:
    """The error to show where the system refuses to open or write a file; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
        return None
    return ResourceError(
        f"{error.filename or 'a file'} cannot be opened or written", error.strerror or str(error), "give it the rights"
    )
