"""What is wrong with the keys of a file: all of it at once, in the words of somebody who wrote that file."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from moe_distill.config.values import Section
from moe_distill.errors import ConfigError, MoeDistillError

Keys = TypeVar("Keys", bound=Section)
Place = tuple[str, ...]  # the keys, and numbers in lists, that lead to a value


def validated(
    section: type[Keys],
    content: Mapping[str, object],
    path: Path,
    others: Mapping[str, type[Section]],
    found: list[MoeDistillError],
) -> Keys | None:
    """The keys of a file; None where some are wrong: an error of each is added to `found`.

    Args:
        others: what other files hold, by what they are called: an unknown key may belong there.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        found += _wrong_keys(section, error.errors(), content, path, others)
        return None


def _wrong_keys(
    section: type[Section],
    errors: Sequence[ErrorDetails],
    content: Mapping[str, object],
    path: Path,
    others: Mapping[str, type[Section]],
) -> list[ConfigError]:
    """An error for each wrong key: what the user wrote first, then what is missing.

    A misspelt key is unknown and leaves the right one missing: that is one mistake.
    """
    missing = [_place(each, content) for each in errors if each["type"] == "missing"]
    said = dict[Place, str]()
    meant = set[Place]()
    told = list[ConfigError]()
    for each in errors:
        place = _place(each, content)
        if each["type"] == "extra_forbidden":
            free = [other[-1] for other in missing if other[:-1] == place[:-1]]
            right = _close(place[-1], free) or _close(place[-1], _known(section, each["loc"]))
            meant.add((*place[:-1], right))
            homes = [] if right else _homes(place, {"": section, **others})
            meaning = f"; did you mean `{right}`?" if right else f"; it is {' or '.join(homes)}" if homes else ""
            said[place] = f"is not a known key{meaning}"
        elif each["type"] == "union_tag_invalid":
            tag, kinds = each["ctx"]["tag"], each["ctx"]["expected_tags"].replace("'", "").split(", ")
            right = _close(str(tag), kinds)
            what = f"no kind `{tag}`" + (f"; did you mean `{right}`?" if right else "")
            told.append(ConfigError(f"{path}: `{'.'.join(place)}`: {what}", fix=f"there are {', '.join(kinds)}"))
        elif each["type"] == "value_error":  # keys that do not fit each other; the message names them
            key = f"`{'.'.join(place)}`: " if place else ""
            what = each["msg"].removeprefix("Value error, ")
            told.append(ConfigError(f"{path}: {key}{what}", fix=f"change it in {path}"))
        elif each["type"] != "missing":  # a key that can be of several types has an error of each
            before = f"{said[place].rsplit(', not ', 1)[0]}, or " if place in said else ""
            said[place] = f"{before}{each['msg'][0].lower()}{each['msg'][1:]}, not {each['input']!r}"
    said |= {place: "is missing" for place in missing if place not in meant}
    for place, what in said.items():
        key = ".".join(place)
        fix = "" if what.endswith(("?", "`")) else f"change `{key}` in {path}"
        told.append(ConfigError(f"{path}: `{key}` {what}", fix=fix))
    return told


def _place(error: ErrorDetails, content: object) -> Place:
    """Where an error stands in the file; pydantic's own place also names the member of a union, which is no key."""
    place, parts = list[str](), error["loc"]
    for number, part in enumerate(parts, start=1):
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(part, int) and isinstance(content, list):
            content = list(content)[part]
        elif error["type"] != "missing" or number < len(parts):
            continue
        place.append(str(part))
    return tuple(place)


def _known(section: type[Section], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are known where an unknown one stands."""
    sections = [section]
    for part in loc[:-1]:
        fields = [each.model_fields[str(part)] for each in sections if str(part) in each.model_fields]
        if fields:
            sections = [each for field in fields for each in sections_of(field.annotation)]
        else:  # a place in a list, or the kind of which a section of several kinds is
            of_kind = [each for each in sections if "kind" in each.model_fields]
            sections = [each for each in of_kind if part in get_args(each.model_fields["kind"].annotation)] or sections
    return [name for each in sections for name in each.model_fields]


def _homes(place: Place, files: Mapping[str, type[Section]]) -> list[str]:
    """The places of all keys of this name, each after its file's, unless that is the empty text.

    None where it would be right in another kind of the section that it stands in.
    """
    homes = [(file, home) for file, keys in files.items() for home in dict.fromkeys(_places(place[-1], keys))]
    if ("", ".".join(part for part in place if not part.isdigit())) in homes:
        return []
    return [f"{file}'s `{home}`" if file else f"`{home}`" for file, home in homes]


def _places(name: str, section: type[Section]) -> Iterator[str]:
    """The keys that lead to one of this name."""
    for key, field in section.model_fields.items():
        if key == name:
            yield key
        yield from (f"{key}.{place}" for below in sections_of(field.annotation) for place in _places(name, below))


def sections_of(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def _close(written: str, known: Sequence[str]) -> str:
    """The known key that is most like the one written; empty where none is."""
    return next(iter(get_close_matches(written, known, 1)), "")
