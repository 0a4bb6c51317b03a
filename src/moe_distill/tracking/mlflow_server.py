"""MLflow's pages on this machine: one worker, no job execution, and the address of the project's own page."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from moe_distill.errors import DataError, ResourceError
from moe_distill.log import log
from moe_distill.tracking.live_runs import opened_store
from moe_distill.tracking.mlflow_store import MLFLOW_ENVIRONMENT, store_uri, what_failed
from moe_distill.utils.files import project_root
from moe_distill.utils.signals import Terminated, raise_at_once

HOST = "127.0.0.1"
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # http_proxy leads away from this machine
LOCK_SECONDS, POLL_SECONDS = 30.0, 0.2
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes for what has no use here


def page(server: str, experiment: str) -> str:
    """The address of all runs with their curves; without `workflowType` MLflow opens on traces of applications."""
    query = "workflowType=machine_learning&compareRunsMode=CHART"
    return f"{server}/#/experiments/{experiment}/runs?{query}"


def serve(port: int) -> None:
    """Serve the project's store until Ctrl-C; says where, when it answers.

    Raises:
        ResourceError: the port is taken, or the server ends by itself.
        DataError: the store is none, or out of reach.
    """
    uri = store_uri()
    if not uri.startswith("http"):
        _require_port(port)
    try:
        with opened_store(LOCK_SECONDS) as store:
            experiment = store.experiment
            has_runs = bool(store.client.search_runs([experiment], max_results=1))
    except Exception as error:  # of MLflow, SQLAlchemy, SQLite, a server's connection
        raise DataError("MLflow's store cannot be opened", what_failed(error)) from error
    if not has_runs:
        log("no run yet: train_kd, or `moe-distill track`, makes the first")
    if uri.startswith("http"):
        log(f"MLflow: {page(uri.rstrip('/'), experiment)}")
        return
    log("MLflow starts; it takes some seconds")
    _serve_until_ended(uri, port, page(f"http://{HOST}:{port}", experiment))


def _serve_until_ended(uri: str, port: int, address: str) -> None:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    signal.signal(signal.SIGTERM, raise_at_once)
    said = project_root() / ".work/mlflow_server.log"
    with said.open("wb") as output:
        environment = os.environ | MLFLOW_ENVIRONMENT | SERVER_ENVIRONMENT
        process = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and not _answers(port):
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            log(f"MLflow: {address}\nCtrl-C ends it")
        process.wait()
    except (KeyboardInterrupt, Terminated):
        return
    finally:
        process.terminate()
        process.wait()
    raise ResourceError("MLflow's server has ended by itself", f"exit code {process.returncode}", f"read {said}")


def _require_port(port: int) -> None:
    """Refuse a port that is taken, or that only root may open."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server: one that has just ended does not count
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            fix = f"choose another: moe-distill ui --port {port + 1 if 1024 <= port < 65535 else 5001}"
            raise ResourceError(f"port {port} cannot be opened", reason, fix) from error


def _answers(port: int) -> bool:
    try:
        with DIRECTLY.open(f"http://{HOST}:{port}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
