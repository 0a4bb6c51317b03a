import pytest

from moe_distill.utils.learning_rate import warmup_cosine


def test_r09_warm_up_then_half_a_cosine() -> None:
    fractions = [warmup_cosine(step, 10, 200, 0.1) for step in range(200)]
    assert fractions[0] == pytest.approx(0.1)
    assert fractions[9] == fractions[10] == 1.0
    assert fractions[10:] == sorted(fractions[10:], reverse=True)
    assert fractions[105] == pytest.approx(0.55)  # half of the way down
    assert fractions[-1] == pytest.approx(0.1, abs=1e-3)
    assert warmup_cosine(500, 10, 200, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 2])
def test_r09_the_first_rate_of_a_short_training_is_above_0(total: int) -> None:
    assert warmup_cosine(0, 1, total, 0.1) == 1.0
