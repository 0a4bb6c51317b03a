"""Keys `corpus` of a profile: the sources of text."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_distill.config.values import Positive, Real, Section, Share

# Under which the metrics of a source are reported, by MLflow and in tables too.
SourceName = Annotated[str, Field(pattern=r"^\w[\w. -]*$", max_length=100)]


class PythonDocs(Section):
    """The documentation inside the installed Python."""

    kind: Literal["python_docs"]
    weight: Share = 1.0  # share of its training documents that is kept


class Files(Section):
    """Local text: .txt, .jsonl or .parquet files, folders of them, or globs."""

    kind: Literal["files"]
    name: SourceName = "texts"  # under which its metrics are reported
    paths: list[str] = Field(min_length=1)  # relative ones are below the main checkout
    field: str = "text"  # key or column that holds the text; ignored for .txt
    weight: Share = 1.0  # share of its training documents that is kept
    max_documents: Positive | None = None  # null: no limit
    join_rows_to_characters: Positive | None = None  # see kind `hub`; a .txt stays one document


class Hub(Section):
    """A dataset of the Hugging Face hub, streamed at a pinned revision."""

    kind: Literal["hub"]
    name: SourceName  # under which its metrics are reported
    repository: str  # owner/name
    revision: str = Field(min_length=1)  # a commit; anything else is refused without `allow_unpinned`
    allow_unpinned: bool = False  # true: whatever a branch or tag names at the first download, recorded from then on
    subset: str | None = None  # configuration of the dataset, where it has several
    split: str = "train"  # of the dataset, that text is read from
    field: str = "text"  # column that holds the text
    weight: Share = 1.0  # share of its training documents that is kept
    max_documents: Positive  # usable ones, from the beginning of the stream
    join_rows_to_characters: Positive | None = None  # rows in a row make a document of so many; null: each is one


Source = Annotated[PythonDocs | Files | Hub, Field(discriminator="kind")]


def source_name(source: Source) -> str:
    """The name under which the metrics of a source are reported."""
    return "python_docs" if isinstance(source, PythonDocs) else source.name


class Corpus(Section):
    """The sources of text, and the split into training and validation documents."""

    sources: list[Source] = Field(min_length=1)  # each of one of the kinds below; one at least, their names distinct
    validation_fraction: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.05  # by document hash

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for name, count in Counter(source_name(source) for source in self.sources).items():
            if count > 1:
                raise ValueError(f"{count} sources are named `{name}`: give each its own `name`")
        return self
