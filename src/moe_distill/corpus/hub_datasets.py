"""Stream a dataset of the Hugging Face hub: documents that are not read are not downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from moe_distill.config.corpus_keys import Hub
from moe_distill.corpus.raw import RawDocument, Skip, from_value
from moe_distill.corpus.resize import join_rows
from moe_distill.errors import DataError, MoeDistillError
from moe_distill.utils.hub_commits import is_commit, record_commit, recorded_commit


def hub_documents(source: Hub) -> Iterator[RawDocument | Skip]:
    """Yield the rows of a dataset at its pinned revision as documents, in order; joined where the source says so.

    Raises:
        DataError: the dataset cannot be reached, does not exist, or lacks the column.
    """
    rows = _rows(source)
    return rows if source.join_rows_to_characters is None else join_rows(rows, source.join_rows_to_characters)


def split_bytes(source: Hub) -> int | None:
    """Bytes of all columns of the source's split, from the dataset's card; None where the card does not say.

    Raises:
        DataError: the dataset cannot be reached.
    """
    import datasets

    with _reached(source):
        info = datasets.load_dataset_builder(source.repository, source.subset, revision=_commit(source)).info
    return info.splits[source.split].num_bytes if info.splits and source.split in info.splits else None


def _rows(source: Hub) -> Iterator[RawDocument | Skip]:
    import datasets  # imported here: it takes a second, and only this kind of source needs it

    with _reached(source):
        rows = datasets.load_dataset(
            source.repository, source.subset, split=source.split, revision=_commit(source), streaming=True
        )
        for number, row in enumerate(rows, start=1):
            if source.field not in row:
                raise _missing_column(source, list(row))
            yield from_value(row[source.field], source.repository, number)


def _commit(source: Hub) -> str:
    """The source's revision; of one that may move, the commit that it was when it was first read."""
    found = recorded_commit("dataset", source.repository, source.revision)
    if source.allow_unpinned and not is_commit(found):
        from huggingface_hub import HfApi  # imported here, as `datasets` is

        found = str(HfApi().dataset_info(source.repository, revision=source.revision).sha)
        record_commit("dataset", source.repository, source.revision, found)
    return found


@contextmanager
def _reached(source: Hub) -> Iterator[None]:
    """Turn errors of the hub inside the block into a DataError."""
    try:
        yield
    except MoeDistillError:
        raise
    except Exception as error:  # of the hub, or of the libraries for tables and HTTP below it, whichever it is
        raise DataError(
            f"the dataset {source.repository} at revision {source.revision} cannot be streamed",
            " ".join(str(error).split()),
            "check the network, and `repository`, `subset`, `split` and `revision` in corpus.sources",
        ) from error


def _missing_column(source: Hub, columns: list[str]) -> DataError:
    return DataError(
        f"the dataset {source.repository} has no column `{source.field}`",
        f"its columns: {', '.join(columns)}",
        "change `field` in corpus.sources",
    )
