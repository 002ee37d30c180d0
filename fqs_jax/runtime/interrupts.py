"""Stopping on request: Ctrl-C and SIGTERM set a flag that long work polls between steps.

A TPU or SLURM preemption notice is a SIGTERM too. The signal may come to only one of several
processes, so they agree before any of them stops.

JAX's own `multihost_utils.reached_preemption_sync_point` does not do it: its service takes SIGTERM for
itself, knows neither Ctrl-C nor a second signal, and is true at exactly one value of a step counter
that all processes must count through from the start, which stages and work outside of steps do not.
"""

from __future__ import annotations

import functools
import os
import signal
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.runtime import processes, sigterm
from fqs_jax.runtime.errors import Interrupted as Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Requests(NamedTuple):
    """The requests of all processes of a run together.

    Attributes:
      signum: number of the signal that came to any process, else 0.
      save: true if any process requests a checkpoint.
    """

    signum: int
    save: bool


class Interrupts:
    """A context in which the first signal sets `signum`, and a second one stops at once.

    The second signal raises KeyboardInterrupt, which leaves the context as Interrupted. Enter it on the
    main thread, after `processes.initialize`, because JAX would replace the signal handlers.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._reduced: jax.Array | None = None  # the requests of one step ago, on their way

    def __enter__(self) -> Interrupts:
        self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        if sigterm.came():  # while this process started
            self.signum = signal.SIGTERM
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is KeyboardInterrupt and self.signum is not None:
            message = "stopped without saving; the last checkpoint stands"
            raise Interrupted(message, self.signum, saved=False)

    def _handle(self, signum: int, _: types.FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        name = signal.Signals(signum).name
        note = f"\n{name}: finishing the step and saving; once more stops without saving\n"
        os.write(
            2, note.encode()
        )  # print is not safe here: the signal may have interrupted a print

    def requests(self, save: bool = False) -> Requests:
        """The requests of all processes, the same on all of them; all must call this.

        With several processes this waits for their devices, so use it between long pieces of work.

        Args:
          save: this process requests a checkpoint.
        """
        own = (self.signum or 0, int(save))
        if jax.process_count() > 1:
            own = np.max(multihost_utils.process_allgather(np.array(own, np.int32)), axis=0)
        return Requests(int(own[0]), bool(own[1]))

    def requests_of_last_step(self, save: bool = False) -> Requests:
        """The `requests` of one step ago, without waiting, for use at every step.

        The all-reduce is queued behind the running step, so nothing waits. With one process the answer
        is immediate.
        """
        if jax.process_count() == 1:
            return self.requests(save)
        answer = Requests(0, False)
        if self._reduced is not None:
            signum, saves = np.asarray(self._reduced)
            answer = Requests(int(signum), bool(saves))
        self._reduced = processes.settled(_highest(np.array((self.signum or 0, save), np.int32)))
        return answer

    def forget_last_step(self) -> None:
        """Drop the requests of the last step of another loop, which has dealt with them."""
        self._reduced = None

    def check(self, message: str) -> None:
        """Raise Interrupted with this message if a signal came to any process; all must call this."""
        if signum := self.requests().signum:
            raise Interrupted(message, signum)


def _highest(own: np.ndarray) -> jax.Array:
    """The elementwise maximum over all processes, on the devices; does not wait for them."""
    spread, maximum = _reduction()
    shape = (spread.num_devices, *own.shape)
    return maximum(jax.make_array_from_callback(shape, spread, lambda _: own[None]))


@functools.cache
def _reduction() -> tuple[jax.sharding.NamedSharding, Callable[[jax.Array], jax.Array]]:
    """A sharding with one row per device, and the jitted maximum over rows, replicated."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    spread, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("device",), ())
    )
    return spread, jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=whole)
