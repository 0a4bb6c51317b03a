import hashlib

import pytest

from moe_distill.corpus.documents import document_id, is_kept, is_validation

IDS = [document_id(f"document {number}") for number in range(20_000)]


def test_document_id_is_the_hash_of_the_utf8_bytes() -> None:
    assert document_id("é\r\n") == hashlib.sha256(b"\xc3\xa9\r\n").hexdigest()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_fraction_is_the_share_of_documents_held_out(fraction: float) -> None:
    share = sum(is_validation(key, fraction) for key in IDS) / len(IDS)
    assert share == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / len(IDS)) ** 0.5)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_weight_is_the_share_kept_on_either_side_of_the_split(weight: float, fraction: float) -> None:
    """Decided from the split's own bits, a low weight would keep validation documents only."""
    train = [key for key in IDS if not is_validation(key, fraction)]
    share = sum(is_kept(key, weight) for key in train) / len(train)
    assert share == pytest.approx(weight, abs=4 * (weight * (1 - weight) / len(train)) ** 0.5)


def test_higher_weight_only_adds_documents() -> None:
    low, high = ({key for key in IDS if is_kept(key, weight)} for weight in (0.3, 0.6))
    assert low < high


@pytest.mark.parametrize("key", ["0" * 64, "f" * 64, "f" * 16 + "0" * 48, "0" * 16 + "f" * 48])
def test_weight_1_keeps_every_hash_and_weight_0_none(key: str) -> None:
    """The largest hashes over 2^64 round to 1.0 in floating point."""
    assert is_kept(key, 1.0)
    assert not is_kept(key, 0.0)


def test_thresholds_follow_the_definition() -> None:
    quarter = "4" + "0" * 15
    below = "3" + "f" * 15
    assert is_validation(below + "f" * 48, 0.25)
    assert not is_validation(quarter + "0" * 48, 0.25)
    assert is_kept("f" * 16 + below + "f" * 32, 0.25)
    assert not is_kept("0" * 16 + quarter + "0" * 32, 0.25)
