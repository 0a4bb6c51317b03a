"""`moe-distill doctor`: checks that take seconds, before a long run or after a killed one (R25)."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.commands.plan import bytes_to_come
from moe_distill.config.params import Params
from moe_distill.config.values import Precision
from moe_distill.errors import DataError, MoeDistillError
from moe_distill.evaluation.teacher_lead import is_ahead, told
from moe_distill.pipeline.dvc_repair import killed_experiment, live_program, stale_rwlock_pids
from moe_distill.pipeline.parameter_checks import check_parameters
from moe_distill.pipeline.resumable_work import unheld_folders, workspace_holder
from moe_distill.utils.device import make_runtime
from moe_distill.utils.files import project_root

LEAD = Path("metrics/teacher_lead.json")
SPARE_BYTES = 2 << 30  # free bytes to keep on top of what the stages will write


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output."""

    subject: str
    text: str
    ok: bool = True


def examine(params: Params) -> Iterator[Finding]:
    """Yield findings on parameters (validated by the caller), device and precision, disk, and killed processes."""
    yield from _parameters(params)
    yield Finding("torch", torch.__version__)
    yield _runtime("device", params.experiment.precision)
    yield _runtime("teacher", params.profile.teacher.precision)
    yield _disk(params)
    yield from _teacher_lead(params)
    holder = workspace_holder()
    if holder is not None:
        yield Finding("stage", f"{holder[0]} runs here as process {holder[1]}")
    yield from _killed_dvc()
    yield from _unfinished_work()


def _parameters(params: Params) -> Iterator[Finding]:
    """What the stage `check` says of them."""
    try:
        warnings = list(check_parameters(params))
    except MoeDistillError as error:
        yield Finding("parameters", str(error), ok=False)
        return
    yield Finding("parameters", f"profile {params.experiment.profile}, temperature {params.experiment.temperature}")
    yield from (Finding("parameters", warning) for warning in warnings)
    if params.profile.baseline == "none":
        yield Finding("baseline", "none: what distillation gains over plain training will not be measured")


def _runtime(subject: str, precision: Precision) -> Finding:
    try:
        return Finding(subject, make_runtime(precision).describe())
    except MoeDistillError as error:
        return Finding(subject, str(error), ok=False)


def _disk(params: Params) -> Finding:
    free = shutil.disk_usage(project_root() if project_root().exists() else Path()).free
    try:
        needs = bytes_to_come(params)
    except DataError as error:  # `moe-distill verify` finds all that is broken
        return Finding("data", str(error), ok=False)
    parts = [f"{n_bytes / 2**30:.1f} GiB of {name}" for name, n_bytes in needs.items()]
    text = f"{free / 2**30:.0f} GiB free; to come: {', '.join(parts) or 'not known before: dvc repro tokenize'}"
    return Finding("disk", text, ok=free > SPARE_BYTES + sum(needs.values()))


def _teacher_lead(params: Params) -> Iterator[Finding]:
    """Yield what teacher and untrained student know of the validation text, once `teacher_lead` has measured it."""
    if LEAD.is_file():
        lead = json.loads(LEAD.read_text(encoding="utf-8"))
        ok = is_ahead(lead) or not params.experiment.teacher_must_lead
        yield Finding("lead", told(lead), ok)


def _killed_dvc() -> Iterator[Finding]:
    """Yield traces of a killed `dvc`; while a `dvc` or `git` is running, that process alone."""
    alive = live_program(Path())
    if alive is not None:
        yield Finding(alive[0], f"runs here as process {alive[1]}")
        return
    found, repair = killed_experiment(), "put right by: moe-distill recover"
    if found is not None and found.branch is not None:
        yield Finding("git", f"HEAD was left detached from branch {found.branch} by a killed dvc; {repair}", ok=False)
    if found is not None and found.overwritten:
        names = ", ".join(found.overwritten)
        yield Finding("experiment", f"values of a killed experiment stand in {names}; {repair}", ok=False)
    if found is not None and found.refs:
        yield Finding("references", f"{', '.join(found.refs)} are of a killed experiment; {repair}", ok=False)
    for dead in stale_rwlock_pids():
        yield Finding("lock", f".dvc/tmp/rwlock names process {dead}, which is dead; {repair}", ok=False)


def _unfinished_work() -> Iterator[Finding]:
    for folder in unheld_folders():
        text = "unfinished; the same command continues it, `moe-distill clean` removes it after a week"
        yield Finding("work", f"{folder.relative_to(project_root())}: {text}")
