"""Count what was left out and why, with enough examples to find it."""

from collections import Counter
from collections.abc import Sequence

from moe_distill.corpus.raw import Skip
from moe_distill.progress import say
from moe_distill.workspace import Json

EXAMPLES = 20  # per source and reason, in skipped.json
SHOWN = 3  # lines printed per source; a source can hold millions of bad lines


class SkipLog:
    """The skipped documents of each source, by reason."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._counts: dict[str, Counter[str]] = {source: Counter() for source in sources}
        self._examples: dict[str, dict[str, list[Json]]] = {source: {} for source in sources}

    def add(self, source: str, skip: Skip) -> None:
        """Count a skipped document; print it if it is among the source's first."""
        if self._counts[source].total() < SHOWN:
            say(f"corpus: {source}: skipped {skip.file}:{skip.line}: {skip.reason}")
        self._counts[source][skip.reason] += 1
        examples = self._examples[source].setdefault(skip.reason, [])
        if len(examples) < EXAMPLES:
            examples.append({"file": skip.file, "line": skip.line})

    def to_json(self) -> Json:
        """`{source: {reason: {"count": int, "examples": [{"file": str, "line": int}, …]}}}`."""
        return {
            source: {
                reason: {"count": count, "examples": self._examples[source][reason]} for reason, count in counts.items()
            }
            for source, counts in self._counts.items()
        }
