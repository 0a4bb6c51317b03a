"""docs/parameters.md, made from the types of config: `python -m moe_distill.config.reference > docs/parameters.md`.

A key's type, range and default come from its type, its meaning from the comment beside or above it in the source, that
of a section from its docstring.
"""

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Profile
from moe_distill.config.values import Section
from moe_distill.config.wrong_keys import sections_of

HEAD = """# Parameters

Every key of `params.yaml` and of `profiles/<profile>.yaml`: type and range, default, meaning. A key without a default
must stand in the file. An unknown key is refused, and so is a value out of range; keys that must fit each other are
compared too (`moe-distill doctor` says all of it at once). Whole numbers are below 2^31, where nothing else is said.
`dvc exp run -S temperature=2.0` sets a key of params.yaml, `-S 'profiles/tiny.yaml:train.max_steps=100'` one of a
profile.

This page is made from the types in `src/moe_distill/config`:
`python -m moe_distill.config.reference > docs/parameters.md`.
"""
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} long"}
BOUNDS |= {"max_length": "at most {} long", "pattern": "pattern `{}`"}
LARGEST = 2**31  # of whole numbers; said once
POWERS = {2**32: "2^32"}


def page() -> str:
    """The whole page."""
    shown = dict[type[Section], str]()
    files: dict[str, type[Section]] = {"params.yaml": ExperimentParams, "profiles/\\<profile>.yaml": Profile}
    tables = [line for name, keys in files.items() for line in _tables(keys, f"## {name}", "", shown)]
    return "\n".join([HEAD, *tables]).rstrip() + "\n"


def meanings(section: type[Section]) -> dict[str, str]:
    """The comment of each key, those of its bases' keys too; empty where there is none."""
    found = dict[str, str]()
    for each in reversed(section.__mro__):
        if issubclass(each, Section) and each is not Section:
            found |= _comments(inspect.getsource(each))
    return found


def _comments(source: str) -> dict[str, str]:
    """The comment of each annotated name of a class: of the lines above it that hold nothing else, and of its own."""
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (of_class,) = ast.parse(source).body
    assert isinstance(of_class, ast.ClassDef)
    found = dict[str, str]()
    for node in of_class.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while lines[first - 2].strip().startswith("#"):
                first -= 1
            found[node.target.id] = " ".join(comments[line] for line in range(first, last + 1) if line in comments)
    return found


def _tables(section: type[Section], heading: str, path: str, shown: dict[type[Section], str]) -> Iterator[str]:
    """The table of a section, and those of the sections below it; one that was shown before is named."""
    yield f"{heading}\n"
    if section in shown:
        yield f"The keys of {shown[section]}, above.\n"
        return
    shown[section] = heading.lstrip("# ")
    yield f"{(section.__doc__ or '').strip()}\n"
    yield "| key | type, range | default | meaning |\n|---|---|---|---|"
    of_key, below = meanings(section), []
    for name, field in section.model_fields.items():
        if name == "kind":  # stands in the heading
            continue
        key, sections = path + name, sections_of(field.annotation)
        if sections:
            is_list = get_origin(field.annotation) is list
            kind = "list of sections, see below" if is_list else "section, see below"
        else:
            kind = described(field.annotation, field.metadata)
        of_section = (sections[0].__doc__ or "").strip() if len(sections) == 1 else ""
        meaning = (of_key[name] or of_section).replace("|", "\\|")
        yield f"| `{name}` | {kind} | {_default(field, bool(sections))} | {meaning} |"
        below += [(each, key) for each in sections]
    yield ""
    for each, key in below:
        yield from _tables(each, f"### `{key}`{_kind(each)}", f"{key}.", shown)


def _kind(section: type[Section]) -> str:
    field = section.model_fields.get("kind")
    return "" if field is None else f", `kind: {get_args(field.annotation)[0]}`"


def _default(field: FieldInfo, is_section: bool) -> str:
    if field.is_required():
        return ""
    return "those of its keys" if is_section and field.default is not None else f"`{json.dumps(field.default)}`"


def described(annotation: object, metadata: Sequence[object] = ()) -> str:
    """A type and its bounds in words.

    Args:
        metadata: what pydantic has taken out of an `Annotated`.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(described(each) for each in arguments)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "keys and values"
    single = [one for each in metadata for one in (each.metadata if isinstance(each, FieldInfo) else [each])]
    bounds = [
        words.format(POWERS.get(bound, bound))
        for name, words in BOUNDS.items()
        for each in single
        if (bound := getattr(each, name, None)) not in (None, LARGEST)
    ]
    told = f" ({', '.join(bounds)})" if bounds else ""
    if origin is list:
        return f"list{told} of: {described(arguments[0])}"
    return f"{WORDS[annotation]}{told}"  # type: ignore[index]


if __name__ == "__main__":
    print(page(), end="")
