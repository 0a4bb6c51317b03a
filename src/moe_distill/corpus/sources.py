"""Read a source of `corpus.sources`, whatever its kind."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_distill.config.corpus_keys import Files, PythonDocs, Source
from moe_distill.corpus.hub_datasets import hub_documents
from moe_distill.corpus.python_docs import python_documents
from moe_distill.corpus.raw import RawDocument, Skip, examine
from moe_distill.corpus.text_files import file_documents


def read_source(source: Source) -> Iterator[RawDocument | Skip]:
    """Yield a source's usable documents, at most `max_documents`, and the skips between them.

    Raises:
        DataError: the source as a whole is unusable.
    """
    limit = None if isinstance(source, PythonDocs) else source.max_documents
    usable = 0
    for item in _open(source):
        checked = examine(item) if isinstance(item, RawDocument) else item
        yield checked
        usable += isinstance(checked, RawDocument)
        if usable == limit:
            return


def _open(source: Source) -> Iterator[RawDocument | Skip]:
    if isinstance(source, PythonDocs):
        return python_documents(Path(sysconfig.get_path("stdlib")))
    if isinstance(source, Files):
        return file_documents(source.paths, source.field, source.join_rows_to_characters)
    return hub_documents(source)
