"""Reading batches ahead of their use, in threads or in processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import TypeVar

import grain
from absl import flags

T = TypeVar("T")

_unfinished: weakref.WeakSet[Generator] = weakref.WeakSet()

AHEAD = 8  # batches that wait at most; with workers, so many again in each of them
THREADS = 4


def read_ahead(
    read: Callable[[int], T], first: int, last: int, workers: int = 0
) -> Generator[T, None, None]:
    """Yield read(first), read(first + 1), .., read(last - 1), in that order.

    Reading ahead changes only the waiting time: `read` must be a function of the number alone. An
    error in `read` is raised when its number is due.

    Args:
      workers: number of processes to read in; 0 = threads of this process. The processes import the
        main module, so a program that uses them needs an `if __name__ == "__main__"`.
    """
    batches = _read(read, first, last, workers)
    _unfinished.add(batches)
    return batches


def _read(
    read: Callable[[int], T], first: int, last: int, workers: int
) -> Generator[T, None, None]:
    numbers = grain.MapDataset.range(first, last).map(read)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    batches = numbers.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags, also outside our programs
            flags.FLAGS.mark_as_parsed()
        # Through pipes: arrays in shared memory would outlive a process that is killed.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        batches = grain.experimental.WithOptionsIterDataset(batches, pipes).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
            worker_init_fn=functools.partial(_start_worker, os.getpid()),
        )
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


@atexit.register
def _close_all() -> None:
    """Close and free Grain's iterators before the interpreter is torn down.

    With workers, an iterator of Grain 0.2.18 that is freed later prints a traceback. Registering
    `iterator.close` does not help: its `__del__` fails even if it is closed already.
    """
    for batches in list(_unfinished):
        with contextlib.suppress(ValueError):  # running in another thread
            batches.close()


def _start_worker(parent: int, index: int, count: int) -> None:
    """Keep this process off the accelerator, and end it when its parent ends."""
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # JAX has read the environment already
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    for signum in (signal.SIGINT, signal.SIGTERM):  # sent to all; the parent saves, then decides
        signal.signal(signum, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
