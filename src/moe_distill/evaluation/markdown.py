"""Text inside Markdown, shown as it is."""

import re


def fenced(text: str) -> str:
    """A block of code around a text: the fence is longer than any that stands in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
