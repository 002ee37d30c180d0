"""Runs of several processes: detect one, wait for all its processes, join, and leave.

`jax.distributed` does the work, after a roll call. JAX is imported where it is used, because every program
imports this file and should answer --help at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TypeVar

from absl import flags

from fqs_jax.runtime import sigterm
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.roll_call import Cluster, roll_call, stale_slices
from fqs_jax.runtime.stderr import say
from fqs_jax.runtime.watch import DONE, FAULT, SILENCE, Watch

T = TypeVar("T")

TIMEOUT = 300.0  # seconds, as in jax.distributed.initialize

# Seconds of JAX's own watch, of which a beat may use up half. Ours is first, and names the process.
_HEARTBEAT = round(4 * SILENCE)

_process_id = 0
_watch: Watch | None = None


class _DetectionMissing(Exception):
    """JAX's private detection of clusters is not where it was in the versions that setup.cfg allows."""


def define_flags() -> None:
    """The flags of a run of several processes; `initialize_from_flags` reads them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no cluster defines it.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of this run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "expect_processes", None, "Refuse to start with more or fewer.", lower_bound=1
    )
    flags.DEFINE_float(
        "processes_timeout", TIMEOUT, "Seconds to wait for all processes.", lower_bound=0.1
    )


def initialize_from_flags() -> None:
    """Call `initialize` in programs that called `define_flags`; do nothing in others."""
    if "expect_processes" in flags.FLAGS:
        initialize(
            flags.FLAGS.expect_processes,
            coordinator=flags.FLAGS.coordinator,
            num_processes=flags.FLAGS.num_processes,
            process_id=flags.FLAGS.process_id,
            timeout=flags.FLAGS.processes_timeout,
        )


def initialize(
    expected: int | None = None,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Join the other processes of this run, if there are any. Call it before JAX is first used.

    A run has several processes if `coordinator`, `num_processes` and `process_id` are given, or if JAX
    detects more than one on a TPU slice, under SLURM or Open MPI, or in an indexed Kubernetes job.
    Anything else is a single process, which waits for nobody.

    With several processes, only process 0 keeps its stdout, for results. Native libraries' output to
    stdout is dropped (Gloo greets each peer there), or goes to stderr if NCCL_DEBUG is set.

    Args:
      expected: the number of processes to insist on.
      coordinator: HOST:PORT of process 0.
      num_processes: the number of processes of this run.
      process_id: the number of this process, from 0.
      timeout: seconds to wait for all processes.

    Raises:
      UserError: there are more or fewer processes than expected, one did not come in time or came
        twice, or the coordinator's port is taken.
    """
    global _process_id, _watch
    cluster = _find(expected, coordinator, num_processes, process_id, timeout)
    count = 1 if cluster is None else cluster.num_processes
    if expected is not None and count != expected:
        source = "as the cluster says" if cluster else "no cluster was found here"
        found = f"{count} process{'es' * (count > 1)} ({'--num_processes' if num_processes else source})"
        raise UserError(
            f"this run has {found}, expected were {expected}: start it on every host, or correct "
            f"--expect_processes{stale_slices()}"
        )
    if cluster is None:
        _warn_of_stale_slices()
        return
    sigterm.take()
    lines = roll_call(cluster, timeout)
    sigterm.joined()
    _watch = Watch(cluster.process_id, lines)
    import jax

    _process_id = cluster.process_id
    _keep_stdout_for_results()
    # The service would take SIGTERM for itself; see runtime/interrupts.py.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        cluster.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(timeout)),
        heartbeat_timeout_seconds=_HEARTBEAT,
    )


def is_main() -> bool:
    """True on process 0, which prints, and writes the files that are written once."""
    return _process_id == 0


def share() -> tuple[int, int]:
    """The number of this process and of all processes of this run; (0, 1) for a single one."""
    if not is_distributed():
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_distributed() -> bool:
    """True once `initialize` has joined other processes."""
    jax = sys.modules.get("jax")  # not imported: nothing is joined
    return jax is not None and jax.distributed.is_initialized()


def settled(tree: T) -> T:
    """The same tree; on CPUs of several processes, only after its arrays are computed.

    There, two programs that run at the same time can deadlock in Gloo's collectives. Accelerators run
    programs in the order of their launch.
    """
    import jax

    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


def part(fault: str | None = None) -> bool:
    """Tell the other processes that this one ends by itself. False if process 0 ends for the same fault.

    Args:
      fault: the line that says why; None if it ends as it should.
    """
    if _watch is None:
        return True
    _watch.part(DONE if fault is None else f"{FAULT} {fault}")
    return fault is None or not _watch.said_by_main(fault)


def meet() -> None:
    """Return when all processes have done their work; exit if one is lost meanwhile."""
    if _watch is not None:
        _watch.meet()


def leave(code: int) -> None:
    """Exit with this code, without waiting long for processes that may never exit.

    JAX's normal exit waits minutes for every process. Call `part` first.
    """
    if _watch is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        _watch.wait_for_others()
        os._exit(code)
    sys.exit(code)


def _find(
    expected: int | None,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float,
) -> Cluster | None:
    """The run that this process belongs to; None if it is a single process.

    Raises:
      UserError: the arguments are incomplete or inconsistent, or several processes are expected and no
        cluster is found.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    device_ids: Sequence[int] | None = None
    if None in (coordinator, num_processes, process_id):
        try:
            coordinator, num_processes, process_id, device_ids = _detect(
                coordinator, num_processes, process_id, timeout
            )
        except Exception as error:  # libraries of clusters raise anything
            if expected not in (None, 1) or num_processes not in (None, 1):
                raise UserError(f"cannot find out who else is in this run: {error}") from error
            if isinstance(error, _DetectionMissing):
                say(f"note: this is a single process; {error}")
    if num_processes == 1 or (coordinator is None and num_processes is None and process_id is None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError("give --coordinator, --num_processes and --process_id together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT")
    if process_id >= num_processes:
        raise UserError(
            f"process {process_id} is one too many: {num_processes} processes are numbered 0 to "
            f"{num_processes - 1}; see --num_processes and --process_id"
        )
    return Cluster(
        coordinator, num_processes, process_id, None if device_ids is None else tuple(device_ids)
    )


def _detect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """The coordinator, number of processes, own number and devices that JAX detects; None if unknown.

    This needs a private function of JAX: the public one connects to the coordinator before it returns
    the number of processes, and so before the roll call.

    Raises:
      _DetectionMissing: this version of JAX has no such function.
    """
    import jax

    try:
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError) as error:
        raise _DetectionMissing(
            f"JAX {jax.__version__} has moved its detection of clusters ({error}): give --coordinator, "
            "--num_processes and --process_id, or install a version of JAX that setup.cfg allows"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in every pod, that the Kubernetes client is not installed
        found = detect(coordinator, num_processes, process_id, None, None, max(1, round(timeout)))
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):  # JAX reads the user's choice itself
        return (*found[:3], None)
    return found


def _warn_of_stale_slices() -> None:
    """Warn a single process of variables that make the TPU runtime wait for a coordinator."""
    if (
        os.environ.get("MEGASCALE_COORDINATOR_ADDRESS")
        and os.environ.get("MEGASCALE_NUM_SLICES") != "1"
    ):
        say(f"note: this is a single process{stale_slices()}")


def _keep_stdout_for_results() -> None:
    """Send Python's stdout of process 0 to the old descriptor 1, and everything else nowhere."""
    sys.stdout.flush()
    results = os.dup(1) if is_main() else os.open(os.devnull, os.O_WRONLY)
    sys.stdout = os.fdopen(results, "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(2 if os.environ.get("NCCL_DEBUG") else nowhere, 1)
    os.close(nowhere)
