"""The pipeline as `dvc repro` runs it: memory of its stages as the corpus grows, tracking, a run with nothing to do.

Each run is of a small project in a temporary folder, made of this checkout: profile `test` on the source of the
standard library. Its documents come in a drawn order, so that the first of them are of the same kinds as all: what a
batch takes follows its tokens, and tables of digits have many. 1x fills what a stage holds at once, such as 256 KB of
text (alignment/tokenize.py) and most of the 10,000 words that a tokenizer remembers: 2.4 MB up to `tokenize`. Later
stages take longer, and less fills them: 0.6 MB. Tracking costs some seconds once, and a share of the time from then on:
so a training of minutes shows it, the stage `control` of profile `tiny`, and one of more steps.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from bench_row import Row, Size, at_most, missing
from interleaved import child_clocks, spread
from stage_runs import DOCUMENT_CHARACTERS, ROOT, StageCost, make_workspace, repro, shuffled_documents, small_profile

CHARACTERS, LATER_CHARACTERS = 2_400_000, 600_000  # of the corpus at 1x: up to `tokenize`, and after it
GROWTH, NOTHING_TO_DO, TRACKING = at_most(1.1), at_most(5, "s"), at_most(1, "%")
TRACKED = "tracking: share of the time of a training (stage `control`, profile `tiny`, steps: {})"
MORE_STEPS = 5
FIRST, LATER = "up to `tokenize`", "after `tokenize`"


def rows(size: Size) -> Iterator[Row]:
    """One line for each scale, the run with nothing to do, and tracking."""
    if shutil.which("git") is None or not Path("/proc/self/status").is_file():
        yield missing("stages under `dvc repro`", "this takes git, and a Linux that tells what memory a process holds")
        return
    characters = size.pick(CHARACTERS // 40, CHARACTERS, CHARACTERS)
    documents = shuffled_documents(size.pick(4, 4, 16) * characters)
    last = "corpus" if size is Size.SMALLEST else None
    with TemporaryDirectory() as folder:
        make_workspace(Path(folder), small_profile(), first(documents, characters))
        once = repro(Path(folder), last)
        yield nothing_to_do(Path(folder), last, size.pick(1, 3, 5))
    if size is Size.FULL:
        fewer, more = costs(first(documents, LATER_CHARACTERS)), costs(first(documents, 4 * CHARACTERS))
        most = costs(documents, "tokenize")
        yield growth(once, {stage: more[stage] for stage in most}, 4, FIRST)
        yield growth(once, most, 16, FIRST)
        for scale, later in ((4, once), (16, more)):
            yield growth(fewer, {stage: cost for stage, cost in later.items() if stage not in most}, scale, LATER)
        yield tracking()
        yield tracking(MORE_STEPS)
    else:
        yield growth(once, costs(documents, last or "tokenize"), 4, FIRST)
        yield missing(TRACKED.format("its own"), "it takes minutes: `make bench-full`", TRACKING)


def first(documents: Sequence[str], characters: int) -> Sequence[str]:
    """As many documents as have so many characters."""
    return documents[: characters // DOCUMENT_CHARACTERS]


def costs(documents: Sequence[str], last: str | None = None) -> dict[str, StageCost]:
    """What the stages take on a corpus, up to the one that is named."""
    with TemporaryDirectory() as folder:
        make_workspace(Path(folder), small_profile(), documents)
        return repro(Path(folder), last)


def nothing_to_do(folder: Path, last: str | None, rounds: int) -> Row:
    """In a workspace whose pipeline has run; `check` runs each time."""
    times = []
    for _ in range(rounds):
        began = child_clocks()
        repro(folder, last)
        times.append([ended - start for ended, start in zip(child_clocks(), began, strict=True)])
    cpu, wall = (spread(list(each)) for each in zip(*times, strict=True))
    return Row(
        "`dvc repro` with nothing to do",
        ours=f"{wall.median:.1f} s, of {rounds}: {wall.low:.1f} to {wall.high:.1f} (CPU {cpu.median:.1f} s)",
        target=NOTHING_TO_DO,
        value=wall.median,
    )


def growth(once: dict[str, StageCost], more: dict[str, StageCost], scale: int, where: str) -> Row:
    """The stage of `more` that grows most, and beside it all others.

    Args:
        where: which stages these are: FIRST or LATER.
    """
    ratios = {stage: more[stage].peak_bytes / once[stage].peak_bytes for stage in more}
    worst = max(ratios, key=lambda stage: ratios[stage])
    return Row(
        f"peak memory of a stage {where}, {scale}x the corpus over 1x: the one that grows most",
        ours=f"{worst} {more[worst].peak_bytes / 1e6:,.0f} MB",
        reference=f"{once[worst].peak_bytes / 1e6:,.0f} MB",
        ratio=spread([ratios[worst]]),
        target=GROWTH,
        note=", ".join(f"{stage} {ratio:.2f}" for stage, ratio in ratios.items()),
    )


def tracking(more_steps: int = 1) -> Row:
    """A training of minutes.

    Args:
        more_steps: how many times the steps of the profile it has.
    """
    profile = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
    profile["train"]["max_steps"] *= more_steps
    with TemporaryDirectory() as folder:
        make_workspace(Path(folder), profile, documents=None)
        cost = repro(Path(folder), "control")["control"]
    share = 100 * cost.tracking_seconds / cost.seconds
    return Row(
        TRACKED.format(profile["train"]["max_steps"]),
        ours=f"{cost.tracking_seconds:.1f} s, {share:.2f} %",
        reference=f"{cost.seconds:.0f} s",
        target=TRACKING,
        value=share,
        note=f"{cost.first_tracking_seconds:.1f} s of it once, before the first step: MLflow's import, its store made",
    )
