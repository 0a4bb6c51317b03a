"""`moe-distill ui` and the pages it serves, as a person's browser shows them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import psutil
import pytest

from moe_distill.tracking.mlflow_runs import track
from moe_distill.tracking.mlflow_server import _answers
from tests.params import ROOT
from tests.tracking.conftest import checkout_in_memory
from tests.tracking.experiments import ALL, Store, make_params, write_everything

CHROMIUM = shutil.which("chromium")
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
# Of MLflow's own pages, each without consequence.
HARMLESS = re.compile(r"AG Grid: since|ResizeObserver loop|WebGL|GL Driver Message")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from moe_distill.cli import main; main()", *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    root: Path
    port: int
    said: list[str]
    processes: int  # of the command and all below it


@pytest.fixture(scope="module")
def server(empty_database: Path) -> Iterator[Server]:
    """Two temperatures in a store, and `moe-distill ui` on it."""
    with checkout_in_memory() as root, pytest.MonkeyPatch.context() as patch:
        shutil.copyfile(empty_database, root / "mlflow.db")
        patch.chdir(root)
        Path("params.yaml").touch()
        for temperature in (1.0, 2.0):
            write_everything(scale=1 + temperature / 8)
            track(make_params(temperature), ALL)
        port = free_port()
        process = subprocess.Popen(command("ui", "--port", str(port)), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = []
        while process.poll() is None and "Ctrl-C ends it" not in said:
            said.append(process.stdout.readline().rstrip())
        below = psutil.Process(process.pid).children(recursive=True)
        yield Server(root, port, said, 1 + len(below))
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert psutil.wait_procs(below, timeout=30)[1] == [], "nothing goes on behind it"


@dataclass(frozen=True)
class Page:
    text: str  # what the page shows, without tags
    console: list[str]
    addresses: set[str]  # that were asked for


def visit(address: str, folder: Path) -> Page:
    """Show a page, and keep a picture of it in `folder`; nothing but this machine can be reached."""
    assert CHROMIUM is not None
    net_log, picture = folder / "net.json", folder / "page.png"
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    switches += ["--disable-component-update", "--window-size=1600,6000", "--virtual-time-budget=20000"]
    switches += ["--enable-logging=stderr", f"--log-net-log={net_log}", f"--user-data-dir={folder / 'profile'}"]
    switches += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--screenshot={picture}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *switches, address], capture_output=True, text=True, timeout=180)
    assert picture.stat().st_size > 20_000, done.stderr
    lines = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    dom = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", done.stdout, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]*>", " ", dom).split())
    (folder / "page.txt").write_text(text)
    # each request is a line; the browser has some of its own, which no page began
    asked_by_pages = [line for line in net_log.read_text().splitlines() if '"initiator":"http' in line]
    addresses = set(re.findall(r'"url":"(https?://[^/"]+)', "\n".join(asked_by_pages)))
    return Page(text, [line for line in lines if not HARMLESS.search(line)], addresses)


def test_it_says_where_and_serves_with_few_processes(server: Server) -> None:
    experiment = Store(server.root).only_experiment()
    assert server.said == [
        "MLflow starts; it takes some seconds",
        f"MLflow: http://127.0.0.1:{server.port}/#/experiments/{experiment}/runs"
        "?workflowType=machine_learning&compareRunsMode=CHART",
        "Ctrl-C ends it",
    ]
    assert server.processes == 3, "the command, MLflow's and one worker"


def test_a_taken_port_is_one_line(server: Server) -> None:
    done = subprocess.run(command("ui", "--port", str(server.port)), capture_output=True, text=True, cwd=server.root)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: port {server.port} cannot be opened")
    assert "moe-distill ui --port" in line


def test_it_is_asked_whether_it_answers_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies that it found first

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        answers = Thread(target=server.handle_request, daemon=True)
        answers.start()
        assert _answers(server.server_port)
        answers.join()


@browser
def test_the_address_opens_on_the_runs_and_their_curves(server: Server, tmp_path: Path) -> None:
    shown = ("tiny T=2.0", "final/retention", "train/loss", "validation/loss")
    for attempt in range(10):  # charts are drawn last: on a busy machine after the picture
        (tmp_path / str(attempt)).mkdir()
        page = visit(server.said[1].removeprefix("MLflow: "), tmp_path / str(attempt))
        if all(each in page.text for each in shown):
            break
    for each in shown:
        assert each in page.text
    assert "Traces 0" not in page.text
    assert page.console == []
    assert page.addresses == {f"http://127.0.0.1:{server.port}"}


@browser
@pytest.mark.slow
@pytest.mark.parametrize("which", ["parents", "nested"])
def test_two_temperatures_are_compared(server: Server, which: str, tmp_path: Path) -> None:
    store = Store(server.root)
    runs = list(store.parents().values())
    if which == "nested":
        runs = [store.nested(run)["train_router"] for run in runs]
    runs.sort(key=lambda run: run.data.params["temperature"])
    identities = json.dumps([run.info.run_id for run in runs])
    experiments = json.dumps([store.only_experiment()])
    address = f"http://127.0.0.1:{server.port}/#/compare-runs?runs={quote(identities)}&experiments={quote(experiments)}"
    page = visit(address, tmp_path)
    assert "Comparing 2 Runs" in page.text
    assert "temperature 1.0 2.0" in page.text
    values = " ".join(f"{run.data.metrics['final/student_bits_per_byte']:.3f}".rstrip("0") for run in runs)
    assert "final/student_bits_per_byte" in page.text
    assert f" {values} " in page.text
    assert page.console == []
    assert page.addresses == {f"http://127.0.0.1:{server.port}"}


def test_track_before_anything_ran_makes_no_run(fresh: Path) -> None:
    for name in ("params.yaml", "profiles"):
        (fresh / name).symlink_to(ROOT / name)
    done = subprocess.run(command("track"), capture_output=True, text=True, cwd=fresh, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to track yet; run: dvc repro\n", "")
    assert not (fresh / "mlflow.db").exists()
