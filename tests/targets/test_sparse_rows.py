"""Flat sparse rows against a dense table in float64."""

import torch

from moe_distill.targets.sparse_rows import merged, padded, probs_at

N, VOCABULARY = 7, 11
ROWS = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3, 6])
IDS = torch.tensor([4, 1, 4, 0, 10, 5, 5, 5, 2, 3])
LOGPROBS = torch.tensor([-1.0, -300.0, -2.0, -120.0, float("-inf"), -1.0, -80.0, -1.0, float("-inf"), 0.0])


def dense() -> torch.Tensor:
    table = torch.zeros(N, VOCABULARY, dtype=torch.float64)
    return table.index_put((ROWS, IDS), LOGPROBS.double().exp(), accumulate=True)


def test_entries_of_one_id_are_added_and_none_underflows() -> None:
    found = merged(ROWS, IDS, LOGPROBS)
    assert list(zip(found.rows.tolist(), found.ids.tolist(), strict=True)) == [(0, 1), (0, 4), (2, 0), (3, 5), (6, 3)]
    torch.testing.assert_close(found.logprobs.double(), dense()[found.rows, found.ids].log())


def test_the_order_of_what_is_merged_does_not_matter_and_its_gradient_is_that_of_the_sum() -> None:
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(0))
    logprobs = LOGPROBS.clone().requires_grad_()
    found = merged(ROWS[order], IDS[order], logprobs[order])
    torch.testing.assert_close(found.logprobs, merged(ROWS, IDS, LOGPROBS).logprobs)
    found.logprobs[1].backward()  # row 0, id 4
    expected = torch.zeros(len(ROWS))
    expected[[0, 2]] = torch.tensor([-1.0, -2.0]).softmax(-1)
    torch.testing.assert_close(logprobs.grad, expected)


def test_probabilities_of_some_ids() -> None:
    rows, ids = torch.cartesian_prod(torch.arange(N), torch.arange(VOCABULARY)).unbind(1)
    found = probs_at(merged(ROWS, IDS, LOGPROBS), rows, ids).view(N, VOCABULARY)
    torch.testing.assert_close(found.double(), dense(), rtol=1e-6, atol=1e-45)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert probs_at(merged(nothing, nothing, torch.zeros(0)), rows, ids).tolist() == [0.0] * len(rows)


def test_rows_are_padded_to_the_fullest_and_to_one_at_least() -> None:
    assert padded(torch.tensor([0, 2, 2]), torch.tensor([5, 6, 7]), 4, -1).tolist() == [
        [5, -1],
        [-1, -1],
        [6, 7],
        [-1, -1],
    ]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert padded(nothing, nothing, 2, 0).tolist() == [[0], [0]]
    assert padded(nothing, nothing, 0, 0).shape == (0, 1)
