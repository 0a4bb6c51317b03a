"""`moe-distill doctor`: checks that take seconds, before a long run or after a killed one (R25)."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.commands.plan import bytes_to_come
from moe_distill.config.params import Params, load_params
from moe_distill.config.values import Precision
from moe_distill.errors import ConfigError, DataError, MoeDistillError, ResourceError
from moe_distill.evaluation.teacher_lead import is_ahead, told
from moe_distill.pipeline.dvc_locks import live_program, stale_locks
from moe_distill.pipeline.dvc_repair import killed_experiment
from moe_distill.pipeline.parameter_checks import examine_parameters
from moe_distill.pipeline.resumable_work import RECORD_NAME, unheld_folders, workspace_holder
from moe_distill.planning.model_configs import TARGETS, is_current
from moe_distill.shards.format import INDEX_NAME
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
    exit_code: int = ResourceError.exit_code  # of the command, if this is the first that is not ok


def _fault(subject: str, error: MoeDistillError) -> Finding:
    return Finding(subject, str(error), ok=False, exit_code=error.exit_code)


def examine_project() -> Iterator[Finding]:
    """Yield findings on the current folder and on all else; parameters that cannot be read hide nothing else.

    Raises:
        ConfigError: the current folder is not the root of the project.
    """
    try:
        params = load_params()
    except ConfigError as error:
        if not Path("params.yaml").is_file():
            raise
        yield _fault("parameters", error)
        params = None
    yield from _folder()
    if params is not None:
        yield from examine(params)
    else:
        yield _runtime("device", "auto")
        yield from _processes()


def examine(params: Params) -> Iterator[Finding]:
    """Yield findings on parameters (validated by the caller), device and precision, disk, and killed processes."""
    yield from _parameters(params)
    yield Finding("torch", torch.__version__)
    yield _runtime("device", params.experiment.precision)
    yield _runtime("teacher", params.profile.teacher.precision)
    yield _disk(params)
    yield from _teacher_lead(params)
    yield from _processes()


def _folder() -> Iterator[Finding]:
    """Yield what keeps a stage or DVC from working in the current folder."""
    if not os.access(Path(), os.W_OK):
        yield Finding("folder", f"{Path.cwd()} cannot be written to; give it the rights, or copy the project", ok=False)
    if shutil.which("git") is None:
        yield Finding("git", "there is no program git, which DVC needs; install it, as with: apt install git", ok=False)
    elif subprocess.run(["git", "rev-parse"], capture_output=True, check=False).returncode:
        fix = "run: git init && git add -A && git commit -m start"
        yield Finding("git", f"{Path.cwd()} is in no git repository, which DVC needs; {fix}", ok=False)


def _processes() -> Iterator[Finding]:
    """Yield what runs here, and what a killed process has left."""
    holder = workspace_holder()
    if holder is not None:
        yield Finding("stage", f"{holder[0]} runs here as process {holder[1]}")
    if shutil.which("git") is not None:
        yield from _killed_dvc()
    yield from _unfinished_work()


def _parameters(params: Params) -> Iterator[Finding]:
    """What the stage `check` says of them."""
    faults, warnings = examine_parameters(params)
    if faults:
        yield from (_fault("parameters", fault) for fault in faults)
    else:
        yield Finding("parameters", f"profile {params.experiment.profile}, temperature {params.experiment.temperature}")
    yield from (Finding("parameters", warning) for warning in warnings)
    if params.profile.baseline == "none":
        yield Finding("baseline", "none: what distillation gains over plain training will not be measured")


def _runtime(subject: str, precision: Precision) -> Finding:
    try:
        return Finding(subject, make_runtime(precision).describe())
    except MoeDistillError as error:
        return _fault(subject, error)


def _disk(params: Params) -> Finding:
    free = shutil.disk_usage(project_root() if project_root().exists() else Path()).free
    try:
        needs = bytes_to_come(params)
    except DataError as error:  # `moe-distill verify` finds all that is broken
        return _fault("data", error)
    parts = [f"{n_bytes / 2**30:.1f} GiB of {name}" for name, n_bytes in needs.items()]
    text = f"{free / 2**30:.0f} GiB free; to come: {', '.join(parts) or 'not known before: dvc repro tokenize'}"
    return Finding("disk", text, ok=free > SPARE_BYTES + sum(needs.values()))


def _teacher_lead(params: Params) -> Iterator[Finding]:
    """Yield what teacher and untrained student know of the validation text, once `teacher_lead` has measured it."""
    is_measured = False
    with suppress(DataError):  # of dvc.lock, which `_disk` has told
        is_measured = LEAD.is_file() and is_current(TARGETS)
    if is_measured:
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
    if found is not None and (found.overwritten or found.removed):
        names = ", ".join([*found.overwritten, *found.removed])
        yield Finding("experiment", f"a killed experiment has changed {names}; {repair}", ok=False)
    if found is not None and found.refs:
        yield Finding("references", f"{', '.join(found.refs)} are of a killed experiment; {repair}", ok=False)
    for lock in stale_locks():
        yield Finding("lock", f"{lock.path} {lock.fault}; {repair}", ok=False)


def _unfinished_work() -> Iterator[Finding]:
    text = "unfinished; the same command continues it, `moe-distill clean` removes it after a week"
    for folder in unheld_folders():
        if any((folder / name).is_file() for name in (RECORD_NAME, INDEX_NAME)):  # finished: a result, a kept map
            continue
        yield Finding("work", f"{folder.relative_to(project_root())}: {text}")
