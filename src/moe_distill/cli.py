"""The command line `moe-distill`: checks and repairs beside `dvc repro`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from moe_distill.config.params import load_params
from moe_distill.errors import DataError, MoeDistillError
from moe_distill.log import log
from moe_distill.utils.files import project_root

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


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
    show: Annotated[int, typer.Option(help="print so many windows, with the aligned pieces of both tokenizers")] = 0,
) -> None:
    """Say how many windows, steps, teacher rows and router positions the parameters come to, and the shards' size."""
    from moe_distill.commands.plan import describe
    from moe_distill.commands.show_windows import show_windows
    from moe_distill.pipeline.parameter_checks import check_parameters

    params = load_params()
    for warning in check_parameters(params):
        log(f"warning: {warning}")
    for line in show_windows(params.profile.windows, show) if show else describe(params):
        log(line)


@app.command()
def result() -> None:
    """Say what came out of the last run, and where report and student lie."""
    from moe_distill.pipeline.stage_summary import result_lines

    for line in result_lines():
        log(line)


@app.command()
def verify() -> None:
    """Read every byte of every output and of work in progress, and compare with the recorded hashes."""
    from moe_distill.commands.verify import verify as read_through

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
    days: Annotated[float, typer.Option(help="leave what was touched in these days")] = 7.0,
) -> None:
    """Remove unfinished work that nobody continues (.work)."""
    from moe_distill.commands.recover import abandoned_folders, remove_folder

    freed = 0
    for folder in abandoned_folders(days):
        log(f"removed {folder}")
        freed += remove_folder(folder)
    log(f"{freed:,} bytes freed")


@app.command()
def track() -> None:
    """Bring MLflow up to what the files of this workspace say, also where every stage came from DVC's cache."""
    from moe_distill.tracking.mlflow_runs import track as fill_in

    fill_in(load_params(), ["train_kd", "train_router", "control", "evaluate"])


@app.command()
def ui(port: int = 5000) -> None:
    """Open the MLflow UI of this project on 127.0.0.1."""
    store = f"sqlite:///{project_root() / 'mlflow.db'}"
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store]
    subprocess.run([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, check=False)


def main() -> None:
    """Entry point: an error with a known cause is one line and an exit code, not a traceback."""
    try:
        app()
    except MoeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
