"""The command line `moe-distill`: checks and repairs beside `dvc repro`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_distill.errors import ConfigError, DataError, MoeDistillError, ResourceError
from moe_distill.log import log
from moe_distill.utils.disk_space import disk_full, read_only
from moe_distill.utils.files import outside_the_root, project_root

if TYPE_CHECKING:
    from moe_distill.config.params import Params

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def load_params() -> "Params":
    """The parameters of the current folder."""
    from moe_distill.config.params import load_params as load  # imports pydantic: a moment, which `--help` can spare

    return load()


def _require_root() -> None:
    """Refuse a command that is given elsewhere: it would find nothing there, and say so as if it were the project."""
    if not Path("params.yaml").is_file():
        raise ConfigError(*outside_the_root(Path()))


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"moe-distill {version('moe-distill')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Distil a Mixture-of-Experts teacher into a small student. Everything itself runs by `dvc repro`."""


@app.command()
def doctor() -> None:
    """Check parameters, device, precision and disk before a long run; takes seconds."""
    from moe_distill.commands.doctor import examine_project  # imports torch: seconds, which `--help` does not need

    codes = []
    for finding in examine_project():
        log(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.subject}: {finding.text}")
        codes += [] if finding.ok else [finding.exit_code]
    raise typer.Exit(codes[0] if codes else 0)


@app.command()
def plan(
    show: Annotated[
        int, typer.Option(min=0, help="print so many windows, with the aligned pieces of both tokenizers")
    ] = 0,
    measure: Annotated[bool, typer.Option(help="run each stage's inner loop here for some seconds")] = False,
    device: Annotated[str | None, typer.Option(help="P100, T4, V100, A100, H100 or CPU; else the one here")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="of a session: how many does it take?")] = None,
    disk: Annotated[float | None, typer.Option(min=0.1, help="in GB: does it fit?")] = None,
) -> None:
    """Say what the parameters come to: windows, steps, teacher rows; hours, memory and disk of every stage."""
    from moe_distill.commands.plan import describe, window_stores
    from moe_distill.commands.plan_costs import Budget, describe_costs, planned_device
    from moe_distill.commands.show_windows import show_windows
    from moe_distill.pipeline.parameter_checks import check_parameters

    params, planned = load_params(), planned_device(device, measure)
    for warning in check_parameters(params, needs_commits=False):
        log(f"warning: {warning}")
    if show:
        for line in show_windows(params.profile.windows, show):
            log(line)
        return
    for line in describe(params):
        log(line)
    for line in describe_costs(params, window_stores(), planned, measure, Budget(hours, disk)):
        log(line)


@app.command()
def result() -> None:
    """Say what came out of the last run, and where report and student lie."""
    from moe_distill.pipeline.stage_summary import result_lines

    _require_root()
    for line in result_lines():
        log(line)


@app.command()
def verify() -> None:
    """Read every byte of every output and of work in progress, and compare with the recorded hashes."""
    from moe_distill.commands.verify import verify as read_through

    _require_root()
    found = list(read_through(Path(), project_root() / ".work"))
    for each in found:
        whole = f"skip  {each.path}: {each.unread}" if each.unread else f"ok    {each.path}"
        log(whole if each.fault is None else f"FAIL  {each.fault}")
    if not found:
        log("nothing to verify yet; run: dvc repro")
    if any(each.fault for each in found):
        raise typer.Exit(DataError.exit_code)


@app.command()
def recover(
    shard: Annotated[
        Path | None, typer.Option(help="remove this corrupt file from workspace, DVC cache and .work")
    ] = None,
) -> None:
    """Put right what a killed `dvc exp run` left in git and .dvc, or remove a corrupt file; keeps your edits."""
    from moe_distill.commands.recover import remove_corrupt
    from moe_distill.pipeline.dvc_repair import repair_repository

    _require_root()
    if shard is not None:
        for path in remove_corrupt(shard):
            log(f"removed {path}")
        log(f"{shard} is gone; bring it back with: dvc pull, or dvc repro")
        return
    done = list(repair_repository(Path()))
    for line in done or ["nothing to put right"]:
        log(line)


@app.command()
def clean(
    days: Annotated[float, typer.Option(min=0.0, help="leave what was touched in these days")] = 7.0,
) -> None:
    """Remove unfinished work that nobody continues (.work)."""
    from moe_distill.commands.recover import abandoned_folders, remove_folder

    _require_root()
    freed = 0
    for folder in abandoned_folders(days):
        log(f"removed {folder}")
        freed += remove_folder(folder)
    log(f"{freed:,} bytes freed")


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="The text to go on from.")],
    model: Annotated[Path, typer.Option(help="Folder of a student.")] = Path("models/student"),
    tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 60,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; more draws at random.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Let the student go on from a text; on the CPU, offline."""
    from moe_distill.commands.generate import generate as pieces_of

    for piece in pieces_of(text, model, tokens, temperature, seed):
        print(piece, end="", flush=True)
    print()


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(help="data/teacher_shards, data/windows, models/teacher_head, or below.")],
    row: Annotated[int | None, typer.Option(help="Of positions, tokens or teacher ids; else from the middle.")] = None,
) -> None:
    """Say what a store holds: fields, sizes, and one place decoded, with the teacher's and the student's first five."""
    from moe_distill.commands.inspect_store import inspect as lines_on

    for line in lines_on(store, row, load_params().experiment):
        print(line)


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="New folder for weights, tokenizer and card.")],
    model: Annotated[Path, typer.Option(help="Folder of the finished student.")] = Path("models/student"),
    push: Annotated[str | None, typer.Option(help="Upload it to this repository of the Hugging Face hub too.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
) -> None:
    """Copy the finished student with its tokenizer and card, results included, to a folder; nothing is sent unasked."""
    from moe_distill.commands import export as exporting

    if push is not None:
        exporting.require_repository(push)
    exporting.export(model, to)
    log(f"exported to {to}")
    if push is not None:
        log(f"pushed: {exporting.push(to, push, private)}")


@app.command()
def track() -> None:
    """Bring MLflow up to what the files of this workspace say, also where every stage came from DVC's cache."""
    from moe_distill.tracking.mlflow_runs import track as fill_in
    from moe_distill.tracking.run_tree import STAGES

    found = fill_in(load_params(), STAGES)
    if found is None:
        raise typer.Exit(ResourceError.exit_code)
    log(f"MLflow has {', '.join(found)}" if found else "nothing to track yet; run: dvc repro")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of 127.0.0.1")] = 5000,
) -> None:
    """Open the MLflow UI of this project on 127.0.0.1."""
    from moe_distill.tracking.mlflow_server import serve

    _require_root()
    serve(port)


def main() -> None:
    """Entry point: an error with a known cause is one line and an exit code, not a traceback."""
    try:
        app()
    except (MoeDistillError, OSError) as error:
        known = error if isinstance(error, MoeDistillError) else disk_full(error) or read_only(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        sys.exit(known.exit_code)
