"""What `moe-distill plan --show` prints of the first windows."""

from pathlib import Path

import pytest

from moe_distill.commands.show_windows import show_windows
from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DataError
from tests.chain import Chain


def test_windows_are_shown_as_the_pieces_that_both_tokenizers_end(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.copy(tmp_path / "work").folder)
    first, *lines = show_windows(chain.params.profile.windows, 3)
    assert "where they differ" in first
    assert sum(line.startswith("window ") for line in lines) == 3
    assert max(map(len, lines)) <= 120
    text = next(read_documents(Path("data/corpus/train.parquet")))[0].text
    begin = "".join(each for each in lines[1] if each not in "·|").split(" ")[0].lstrip("[")
    assert text.startswith(begin.replace("␣", " ").replace("⏎", "\n")[:3])


def test_what_is_not_here_yet_is_named_with_its_command(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"train.parquet is not here yet; run: dvc repro corpus"):
        list(show_windows(chain.params.profile.windows, 3))
