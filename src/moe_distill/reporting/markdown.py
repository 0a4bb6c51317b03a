"""Text inside Markdown, shown as it is; and the one mark of Markdown that a page shows too."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def fenced(text: str) -> str:
    """A block of code around a text: the fence is longer than any that stands in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


# What begins a mark: not an underscore inside a word, nor an ampersand that begins no name of a character.
MARK = re.compile(r"[\\`*\[<~|]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return " ".join(MARK.sub(r"\\\g<0>", text).split())


def coded(text: str) -> Markup:
    """A sentence for a page, in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def make_environment(is_page: bool) -> Environment:
    """The templates of this package; what stands in a page is escaped, Markdown is no HTML."""
    environment = Environment(
        loader=PackageLoader("moe_distill.reporting", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=is_page,
    )
    environment.filters |= {"cell": cell, "coded": coded, "fenced": fenced}
    return environment
