"""Write a store whose files are known beforehand: in any order, by several processes, and on where they were killed.

Beside each finished file a progress file says what the index will hold of it, and where the caller's input continues.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from moe_distill.errors import DataError
from moe_distill.shards.format import FieldSpec, FileEntry, Index, Metadata, shard_name
from moe_distill.shards.shard_file import Rows, make_index, write_index
from moe_distill.utils.background import one_at_a_time
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import sha256_file
from moe_distill.utils.processes import ALONE, Processes

Tallies = Mapping[str, float]


class FileProgress(BaseModel):
    """The content of a progress file (docs/formats.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: FileEntry
    next_input: int  # the caller's next input after this file
    tallies: dict[str, float]  # what the caller keeps beside the rows


class PlannedStore:
    """A store of which every process knows the files: file n holds the inputs `files[n]` of the caller.

    Args:
        folder: of the store.
        fields: every column.
        files: the inputs of each file, one range after the other.
        progress_folder: where the progress files are.
        processes: those that write it together; all of them make it, and call its methods in the same order.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, FieldSpec],
        files: Sequence[range],
        progress_folder: Path,
        processes: Processes = ALONE,
    ) -> None:
        self._folder, self._fields, self._files = folder, fields, files
        self._progress_folder, self._processes = progress_folder, processes
        folder.mkdir(parents=True, exist_ok=True)

    def unfinished(self) -> list[int]:
        """The files that this process is to write.

        Each has a contiguous part of the missing files to write, and of those that stand to verify. An unequal start
        hands no file to two: all wait here, until each has seen what stands.
        """
        for left in self._folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        standing = [number for number in range(len(self._files)) if self._progress_path(number).is_file()]
        missing = sorted(set(range(len(self._files))) - set(standing))
        self._processes.wait()  # what is written from now on, another must not find
        broken = [number for number in share(standing, self._processes) if not self._is_whole(number)]
        return sorted([*broken, *share(missing, self._processes)])

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, Rows, Tallies], None]]:
        """Yield a function that writes a file, its number, rows and tallies given, in another thread.

        One file is written at a time. An error is raised where the next file is given, or at the end of the block.
        """
        with one_at_a_time() as start:
            yield lambda number, rows, tallies: start(partial(self._write, number, rows, tallies))

    def finish(self, store_format: str, fingerprint: str, metadata: Metadata) -> Index:
        """The index of all files, when every process has written its own; the first process writes it."""
        self._processes.wait()
        entries = [progress.entry for progress in self.progress()]
        index = make_index(store_format, fingerprint, self._fields, entries, metadata)
        if self._processes.is_first:
            write_index(self._folder, index)
        return index

    def progress(self) -> list[FileProgress]:
        """What is recorded of each file.

        Raises:
            DataError: a progress file is missing or corrupt.
        """
        return [self._read(number) for number in range(len(self._files))]

    def _write(self, number: int, rows: Rows, tallies: Tallies) -> None:
        progress = FileProgress(
            entry=rows.write(self._folder, number), next_input=self._files[number].stop, tallies=dict(tallies)
        )
        write_checksummed_json(self._progress_path(number), progress.model_dump(mode="json"))

    def _is_whole(self, number: int) -> bool:
        """Whether a file is what its progress file says, and holds the inputs that it shall."""
        try:
            progress = self._read(number)
        except DataError:
            return False
        path = self._folder / shard_name(number)
        expected = (path.name, self._files[number].stop)
        return (
            (progress.entry.name, progress.next_input) == expected
            and path.is_file()
            and sha256_file(path) == progress.entry.sha256
        )

    def _read(self, number: int) -> FileProgress:
        path = self._progress_path(number)
        try:
            return FileProgress.model_validate(verified_content(path, read_json_object(path)))
        except (OSError, ValidationError) as error:
            raise DataError(f"{path} is no progress file", str(error).splitlines()[0], "run: dvc repro") from error

    def _progress_path(self, number: int) -> Path:
        return self._progress_folder / f"{shard_name(number)}.json"


def share(items: Sequence[int], processes: Processes) -> Sequence[int]:
    """This process's contiguous part of `items`; the parts are disjoint, and differ by one item at most."""
    first, stop = (len(items) * rank // processes.count for rank in (processes.rank, processes.rank + 1))
    return items[first:stop]
