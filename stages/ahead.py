"""Work done ahead and behind in threads, so that reading and writing overlap what is computed between them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

Result = TypeVar("Result")


def ahead(jobs: Iterable[Callable[[], Result]], depth: int = 2) -> Generator[Result, None, None]:
    """The jobs' results, in order; up to `depth` jobs are done or under way beyond the one whose result is in use."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Behind:
    """Work done behind in a thread, in order, so that writing overlaps what is computed next. After a failure nothing more is done."""

    def __init__(self, depth: int = 4) -> None:
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def do(self, job: Callable[[], object]) -> None:
        """Takes a job; waits while `depth` are under way. The error of an earlier job is raised here or at the end."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, job))

    def _run(self, job: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(wait=True)
