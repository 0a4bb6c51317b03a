"""The documentation inside the installed Python: the topics of `help()`, and the docstrings of the standard library.

About 2 MB of English that need no network. Modules are parsed, never imported: importing one may open a window, start a
thread, or fail because a system library is missing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.errors import DataError

# Folders left out: packages that are not part of the library, and tests.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "ensurepip",
    "turtledemo",
}
MIN_CHARACTERS = 200
TOPICS_NAME = "pydoc_data.topics"


def python_documents(library: Path) -> Iterator[RawDocument | Skip]:
    """Yield the topics of `help()`, then the docstrings of the modules below `library`, sorted by name.

    Raises:
        DataError: this Python was installed without its topics, or without its modules' source.
    """
    yield from topic_documents()
    found = False
    for path in library_modules(library):
        for document in _module_documents(path.read_bytes(), path.relative_to(library).as_posix()):
            found = True
            yield document
    if not found:
        raise _no_documentation(f"{library} holds no documented modules")


def library_modules(library: Path) -> Iterator[Path]:
    """Yield the modules below `library` whose docstrings are documentation, sorted by name."""
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            yield path


def _no_documentation(why: str) -> DataError:
    return DataError(
        "this Python carries no documentation",
        why,
        "create .venv with a complete Python, or use another kind of source in corpus.sources",
    )


def topic_documents() -> Iterator[RawDocument]:
    """Yield each topic that is not part of a longer topic.

    `help("customization")` is a section of `help("specialnames")` word for word: left in, 5 to 9% of the
    topics held out for validation would stand in the training text too.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _no_documentation(f"{TOPICS_NAME} is missing") from error
    for name, text in sorted(topics.items()):
        body = text.split("\n", 2)[-1].strip()  # without the title and its underline
        if not any(body in other for other in topics.values() if len(other) > len(text)):
            yield RawDocument(text, f"{TOPICS_NAME}:{name}", 1)


def _module_documents(source: bytes, file: str) -> Iterator[RawDocument | Skip]:
    """Yield one document for each class with MIN_CHARACTERS of documentation, and one for the rest of the module.

    Whole modules would be too few documents: some 370, of which a tenth is for validation.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        yield Skip("not Python", file, getattr(error, "lineno", None) or 1)
        return
    docstring = ast.get_docstring(module)
    common = [docstring] if docstring else []
    classes: list[RawDocument] = []
    for statement in module.body:
        text = "\n\n".join(_entries(statement))
        if isinstance(statement, ast.ClassDef) and len(text) >= MIN_CHARACTERS:
            classes.append(RawDocument(text, file, statement.lineno))
        elif text:
            common.append(text)
    text = "\n\n".join(common)
    if len(text) >= MIN_CHARACTERS:
        yield RawDocument(text, file, 1)
    yield from classes


def _entries(node: ast.AST) -> Iterator[str]:
    """Yield signature and docstring of `node` and of all definitions inside it, in the file's order."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{_signature(node)}\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _entries(child)


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    keyword = "def" if isinstance(node, ast.FunctionDef) else "async def"
    return f"{keyword} {node.name}({ast.unparse(node.args)}):"
