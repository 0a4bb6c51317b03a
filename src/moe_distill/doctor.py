"""What can be known in seconds before a run that takes hours (R25)."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.config import Params
from moe_distill.errors import MoeDistillError
from moe_distill.runtime import make_runtime
from moe_distill.workspace import project_root

SPARE_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    subject: str
    text: str
    ok: bool = True


def examine(params: Params) -> Iterator[Finding]:
    """Parameters (already parsed by the caller), device and precision, disk."""
    yield Finding("parameters", f"profile {params.study.profile}, temperature {params.study.temperature}")
    yield Finding("torch", torch.__version__)
    yield _runtime(params)
    yield _disk()


def _runtime(params: Params) -> Finding:
    try:
        return Finding("device", make_runtime(params.study.precision).describe())
    except MoeDistillError as error:
        return Finding("device", str(error), ok=False)


def _disk() -> Finding:
    free = shutil.disk_usage(project_root() if project_root().exists() else Path()).free
    return Finding("disk", f"{free / 2**30:.0f} GiB free", ok=free > SPARE_BYTES)
