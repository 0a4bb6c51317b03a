import pytest

from moe_distill.corpus.raw import EXAMPLES, Skip, SkipLog


def test_all_are_counted_the_first_kept_as_examples_and_few_printed(capsys: pytest.CaptureFixture[str]) -> None:
    log = SkipLog(["mine", "clean"])
    for line in range(1, 1001):
        log.add("mine", Skip("NUL", "a.jsonl", line))
    log.add("mine", Skip("empty", "b.txt", 1))
    assert log.to_json() == {
        "mine": {
            "NUL": {
                "count": 1000,
                "examples": [{"file": "a.jsonl", "line": line} for line in range(1, EXAMPLES + 1)],
            },
            "empty": {"count": 1, "examples": [{"file": "b.txt", "line": 1}]},
        },
        "clean": {},
    }
    assert capsys.readouterr().out.splitlines() == [f"corpus: mine: skipped a.jsonl:{line}: NUL" for line in (1, 2, 3)]
