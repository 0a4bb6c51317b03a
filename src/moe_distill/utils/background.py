"""Work in another thread while the caller prepares what comes next."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def one_at_a_time() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Yield a function that starts a job in another thread, as soon as the job before it has ended.

    The error of a job is raised where the next one is given, or at the end of the block. A block that ends by an error
    of its own waits for the running job, and raises its own.
    """
    with ThreadPoolExecutor(1) as executor:
        running: Future[object] | None = None

        def start(job: Callable[[], object]) -> None:
            nonlocal running
            if running is not None:
                running.result()
            running = executor.submit(job)

        yield start
        if running is not None:
            running.result()
