"""The reader and the writer of checkpoints, as this program needs them of Orbax."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp


def reader() -> ocp.Checkpointer:
    """A reader that waits for no other process, since it may fail in one process alone."""
    _stop_leak()
    index = jax.process_index()
    this_process = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    options = ocp.CompositeOptions(multiprocessing_options=this_process)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=this_process)


def writer(before_rename: Callable[[], None], far: bool = False) -> ocp.AsyncCheckpointer:
    """A writer that saves in the background.

    Args:
      before_rename: called on process 0, in a thread, when the folder of a checkpoint is whole, just
        before it gets its name. The save fails if this raises.
      far: a bucket, of which a step should not wait for a dozen answers.
    """
    _stop_leak()
    # On a disk, folders are made at once, so that one that cannot be written is an error at once.
    options = ocp.AsyncOptions(
        create_directories_asynchronously=far, post_finalization_callback=before_rename
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=options)
    )
    return ocp.AsyncCheckpointer(handler, async_options=options)


@functools.cache
def _stop_leak() -> None:
    """Let Orbax no longer count the bytes that TensorStore moves, for the rest of the process.

    Orbax (0.12.8) collects TensorStore's metrics before and after every save and restore, to report the
    throughput to a monitor that nobody here has. TensorStore (0.1.86) never frees what it returns: 14 KB
    a call, 56 KB a checkpoint. Other versions, which lack the function, are left as they are.
    """
    try:
        from orbax.checkpoint._src.serialization import tensorstore_utils
    except ImportError:
        return
    if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
        tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0
