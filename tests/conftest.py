"""For all tests: one thread, for small tensors on a shared machine; and no connection off this machine."""

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.params import ROOT

if TYPE_CHECKING:
    from tests.chain import Chain


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Here and in the processes that tests start: on a busy machine the threads of a small product wait for each other.

    The stages of the end-to-end tests take a tenth of the time.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that connects anywhere else fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert isinstance(address, tuple)
            assert ipaddress.ip_address(address[0]).is_loopback, f"connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> "Chain":
    """Corpus, models, windows, shards and head of a small pair: `copy` it before changing anything."""
    from tests.chain import make_chain, small_params, topic_texts  # the whole package: seconds

    return make_chain(tmp_path_factory.mktemp("chain"), small_params(), topic_texts(40))


@pytest.fixture
def stage_workspace(chain: "Chain", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Chain":
    """A copy of the chain with the project's code, the current folder: where a stage's `main` runs."""
    copied = chain.copy(tmp_path / "workspace")
    for name in ("dvc.yaml", "src", "stages"):
        (copied.folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(copied.folder)
    return copied
