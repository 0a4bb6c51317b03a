"""A dataset of the Hugging Face hub, streamed: what is not read is not downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from moe_distill.config.profile import Hub
from moe_distill.corpus.raw import RawDocument, Skip, from_value
from moe_distill.corpus.resize import join_rows
from moe_distill.errors import DataError


def hub_documents(source: Hub) -> Iterator[RawDocument | Skip]:
    """Yield the documents of a dataset at its pinned revision, in its own order: rows, joined where the source says so.

    Raises:
        DataError: the dataset cannot be reached, does not exist, or lacks the column.
    """
    rows = _rows(source)
    return rows if source.join_rows_to_characters is None else join_rows(rows, source.join_rows_to_characters)


def split_bytes(source: Hub) -> int | None:
    """Bytes of the source's split in memory, all columns, as the dataset's card has them; None where it has not.

    Raises:
        DataError: the dataset cannot be reached.
    """
    import datasets

    with _reached(source):
        info = datasets.load_dataset_builder(source.repository, source.subset, revision=source.revision).info
    return info.splits[source.split].num_bytes if info.splits and source.split in info.splits else None


def _rows(source: Hub) -> Iterator[RawDocument | Skip]:
    import datasets  # here, since it takes a second or more to import and only this source needs it

    with _reached(source):
        rows = datasets.load_dataset(
            source.repository, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, start=1):
            if source.field not in row:
                raise _missing_column(source, list(row))
            yield from_value(row[source.field], source.repository, number)


@contextmanager
def _reached(source: Hub) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
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
