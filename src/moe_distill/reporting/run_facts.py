"""What a report tells of a run beside its figures; collected by pipeline/collect_facts.py."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageFacts:
    """What a stage has cost."""

    name: str
    seconds: float | None  # None: it was not run here, or before times were recorded
    n_bytes: int  # of its outputs


@dataclass(frozen=True)
class RunFacts:
    """Where a run comes from, and what it cost."""

    commit: str  # empty: no git repository
    changed: tuple[str, ...]  # files of the code that differ from the commit
    experiment: str  # DVC's name; empty: none
    collected: str  # date of the corpus; empty: not known
    machine: str
    versions: Mapping[str, str]
    stages: tuple[StageFacts, ...]
    commands: tuple[str, ...]  # that make this run again
