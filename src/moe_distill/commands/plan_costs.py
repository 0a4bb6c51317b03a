"""`moe-distill plan`, its second half: what every stage takes of time, memory and disk, and whether it fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from moe_distill.config.params import Params
from moe_distill.errors import ConfigError
from moe_distill.planning.amounts import count_amounts, count_bytes, download_bytes, row_share
from moe_distill.planning.devices import Device, find_device
from moe_distill.planning.model_configs import find_configs
from moe_distill.planning.model_work import count_work
from moe_distill.planning.rates import estimate_rates
from moe_distill.planning.stage_costs import Plan, StageCost, Verdict, judge, stage_costs
from moe_distill.shards.window_store import WindowStore

GB = 1e9


@dataclass(frozen=True)
class Budget:
    """What there is; None: no limit is asked about."""

    hours: float | None  # of a session
    disk: float | None  # GB


def planned_device(name: str | None, measure: bool) -> Device:
    """The device that a run is planned for; None: the one that is here.

    Raises:
        ConfigError: it is not known, or is to be measured and not here.
    """
    if measure and name is not None:
        raise ConfigError("`--measure` is of the device that is here", fix="leave out `--device`, or `--measure`")
    return find_device(name)


def describe_costs(
    params: Params,
    stores: tuple[dict[str, WindowStore], dict[str, WindowStore]],
    device: Device,
    measure: bool,
    budget: Budget,
) -> Iterator[str]:
    """Yield the table of stages and the verdict, line by line.

    Args:
        stores: windows of teacher and student, by split; empty before `tokenize`.
        measure: whether the inner loops run here, instead of the table.

    Raises:
        ConfigError: the device cannot compute in a precision of the parameters.
    """
    teacher, student = find_configs(params.profile)
    for role, config in (("teacher", teacher), ("student", student)):
        if config is None:
            yield f"hours: the {role}'s sizes are not known before: dvc repro models; or `models.{role}.config`"
    if teacher is None or student is None:
        return
    works = count_work(teacher), count_work(student)
    amounts = count_amounts(params, *stores)
    stored = count_bytes(params, amounts, (works[0], teacher), (works[1], student), device)
    row = row_share(params, works[0])
    if measure:
        from moe_distill.planning.measured import measure_rates  # every stage's code: seconds

        rates = measure_rates(params, device, (works[0], teacher), (works[1], student), row)
    else:
        rates = estimate_rates(params, device, *works, row)
    plan = Plan(params, device, *works, amounts, stored, rates, _is_one_disk(Path(constants.HF_HUB_CACHE)))
    costs = stage_costs(plan)
    yield _origin(plan, measure, counted=bool(stores[0]))
    yield from _table(costs)
    verdict = judge(costs, budget.hours or math.inf, (budget.disk or math.inf) * GB, device.memory)
    yield from _verdict(verdict, budget, max(cost.memory for cost in costs), device)
    downloaded = download_bytes(params, stored)
    if downloaded:
        where = "this disk; HF_HOME puts it on another" if plan.shares_disk_with_hub else "another disk"
        yield f"hub: its cache, {constants.HF_HUB_CACHE}, takes {downloaded / GB:.1f} GB of {where}"


def _origin(plan: Plan, measure: bool, counted: bool) -> str:
    """A line about where the figures come from."""
    device, shared = plan.device, plan.processes
    speeds = ", ".join(f"{flops / 1e12:.3g} in {precision}" for precision, flops in device.flops.items())
    how = "measured here on" if measure else "estimated from sizes, not measured (--measure does), for"
    line = f"hours: {how} {device.name}{'' if measure else f' at TFLOP/s of {speeds}'}"
    if shared > 1:
        line += f"; {shared} processes share capture and training"
    return line if counted else f"{line}; windows are taken as full, and as many as the profile allows"


def _table(costs: list[StageCost]) -> Iterator[str]:
    yield f"{'stage':18} {'tokens':>9} {'written':>9} {'hours':>7} {'memory':>8} {'disk':>8}"
    for cost in costs:
        yield (
            f"{cost.stage:18} {_number(cost.tokens / 1e6, 1, ' M'):>9} {_number(cost.written / GB, 2, ' GB'):>9} "
            f"{_number(cost.seconds / 3600, 2):>7} {_number(cost.memory / GB, 1, ' GB'):>8} "
            f"{_number(cost.disk / GB, 1, ' GB'):>8}"
        )


def _verdict(verdict: Verdict, budget: Budget, memory: float, device: Device) -> Iterator[str]:
    hours = _number(verdict.hours, 1)
    if math.isnan(verdict.hours):
        yield "in all: not known before: dvc repro tokenize; or both limits, `windows.max_..._windows`"
    elif budget.hours is None:
        yield f"in all: {hours} hours"
    else:
        sessions = f"{verdict.sessions:.0f} session{'s' if verdict.sessions > 1 else ''}"
        yield f"in all: {hours} hours: {sessions} of {budget.hours:g} hours; each goes on where the last one ended"
    if not math.isnan(verdict.disk):
        limit = "" if budget.disk is None else f" of {budget.disk:g} GB: {_fits(verdict.disk_fits)}"
        yield f"disk: {verdict.disk / GB:.1f} GB at the peak{limit}"
    if device.memory is not None:
        yield f"memory: {memory / GB:.1f} GB of {device.memory / GB:.0f} GB at the peak: {_fits(verdict.memory_fits)}"


def _fits(fits: bool) -> str:
    return "it fits" if fits else "it does NOT fit"


def _number(value: float, digits: int, unit: str = "") -> str:
    """A number of the table; `?` where it is not known yet, nothing where there is none."""
    return "?" if math.isnan(value) else f"{value:,.{digits}f}{unit}" if value else ""


def _is_one_disk(cache: Path) -> bool:
    """Whether the hub's cache lies on the disk of the current folder."""
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return there.stat().st_dev == Path().stat().st_dev
