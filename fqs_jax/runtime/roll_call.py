"""A roll call: all processes of a run meet before anything else starts.

If a process is missing, `jax.distributed.initialize` waits for minutes and then ends the process from
C++ with SIGABRT (JAX 0.10.2, with jax_enable_recoverability too), so Python has nothing to catch, and
the stack trace names nobody. Therefore every process first connects to the coordinator's address, and
process 0 answers all of them: go, or an error message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fqs_jax.runtime.errors import UserError, printable

# From the number of a process to its host and the connection to it.
Lines = dict[int, tuple[str, socket.socket]]

_GO = "go"
_NAME = "fqs_jax"
# Seconds for a caller's first message. Callers also wait that much longer than process 0, whose answer
# then comes before their own timeout.
_PATIENCE = 5.0
_TAKEN = 30.0  # seconds for the process before a restart to free the port


@dataclass(frozen=True)
class Cluster:
    """One run of several processes, as seen by one of them.

    Attributes:
      coordinator: HOST:PORT of process 0.
      local_device_ids: the devices of this host that this process drives; None for all of them.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None

    @property
    def host(self) -> str:
        """The coordinator's host, without the brackets of an IPv6 address."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return int(self.coordinator.rpartition(":")[2])


@dataclass(frozen=True)
class _Caller:
    """A process that has connected to process 0."""

    line: socket.socket
    process_id: int
    num_processes: int
    host: str

    def hung_up(self) -> bool:
        """True if the process has closed its connection."""
        self.line.setblocking(False)
        try:
            return self.line.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.line.settimeout(_PATIENCE)


def roll_call(cluster: Cluster, timeout: float) -> Lines:
    """Wait until all processes have come.

    Args:
      timeout: in seconds.

    Returns:
      In process 0, the host of every other process and the connection to it, by its number; in the
      others, those of process 0.

    Raises:
      UserError: some processes are missing, or contradict one another; raised in every process that
        came.
    """
    call = _receive if cluster.process_id == 0 else _connect
    outcome = call(cluster, timeout)
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def stale_slices() -> str:
    """A hint at variables of an earlier multi-slice run, which add slices that do not exist; or ""."""
    names = sorted(name for name in os.environ if name.startswith("MEGASCALE_"))
    return f"; unset {', '.join(names)} unless this is a multi-slice run" if names else ""


def _receive(cluster: Cluster, timeout: float) -> Lines | str:
    """Wait in process 0 for the others, and send them the outcome: the lines to them, or the problem."""
    callers: list[_Caller] = []
    problem = None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(cluster.port, min(timeout, _TAKEN)))
        deadline = time.monotonic() + timeout
        while problem is None:
            if len(callers) == cluster.num_processes - 1:
                callers = [caller for caller in callers if not caller.hung_up()]
                if len(callers) == cluster.num_processes - 1:
                    break
            left = deadline - time.monotonic()
            if left <= 0:
                problem = _missing(cluster, callers, timeout)
                break
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                line = stack.enter_context(server.accept()[0])
                if caller := _identify(line):
                    callers = [c for c in callers if not _succeeds(caller, c)]
                    problem = _contradiction(cluster, callers, caller)
                    callers.append(caller)
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.line.sendall(f"{problem or f'{_GO} {_own_host()}'}\n".encode())
        return problem or {c.process_id: (c.host, c.line.dup()) for c in callers}


def _connect(cluster: Cluster, timeout: float) -> Lines | str:
    """Report to process 0 from any other process, and receive the outcome: the line to it, or the problem."""
    hello = f"{_NAME} {cluster.process_id} {cluster.num_processes} {_own_host()}".encode()
    deadline = time.monotonic() + timeout + _PATIENCE
    answer = ""
    for left in _until(deadline):
        with contextlib.suppress(OSError):  # it does not listen yet, or its name is not known yet
            with socket.create_connection((cluster.host, cluster.port), timeout=left) as line:
                if line.getsockname() == line.getpeername():
                    continue  # on one machine, TCP can connect a port to itself if nobody listens
                line.sendall(hello)
                line.settimeout(max(deadline - time.monotonic(), 0.1))
                answer = _read_answer(line)
                word, _, host = answer.partition(" ")
                if word == _GO:
                    return {0: (host, line.dup())}
        if answer and answer.isprintable():
            return answer
    coordinator = f"process 0 at {cluster.coordinator}"
    if answer:  # in the protocol of JAX's own service
        return (
            f"{coordinator} is in a run that does not wait for process {cluster.process_id}: stop what is "
            "left of an earlier run, or the process that is one too many"
        )
    return (
        f"{coordinator} did not answer process {cluster.process_id} within {timeout:g} s: see whether it is "
        f"running, the address is right, and the network lets that port through{stale_slices()}"
    )


def _read_answer(line: socket.socket) -> str:
    """The answer of process 0, up to the end of the line; all of it if that is not this program.

    What comes behind the line is for the watch (runtime/watch.py).
    """
    answer = b""
    while not answer.endswith(b"\n") and (part := line.recv(1)):
        answer += part
    return answer.removesuffix(b"\n").decode(errors="replace")


def _own_host() -> str:
    """The name of this host, without spaces."""
    return "-".join(printable(socket.gethostname(), 100).split()) or "?"


def _listen(port: int, timeout: float) -> socket.socket:
    """A server on the coordinator's port and all addresses, as JAX's own service uses it afterwards.

    Raises:
      UserError: the port stays taken for `timeout` seconds.
    """
    reason = ""
    for _ in _until(time.monotonic() + timeout):
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
    raise UserError(
        f"process 0 cannot listen on port {port} ({reason}): stop what is left of an earlier run, or "
        "choose another port"
    )


def _until(deadline: float) -> Iterator[float]:
    """The seconds left to a moment of `time.monotonic`, every 0.3 s until there are none."""
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(min(0.3, max(deadline - time.monotonic(), 0)))


def _identify(line: socket.socket) -> _Caller | None:
    """The process at the other end; None for a stranger, such as a port scan or a health check."""
    line.settimeout(_PATIENCE)
    try:
        name, process_id, num_processes, host = line.recv(512).decode().split()
        return _Caller(line, int(process_id), int(num_processes), host) if name == _NAME else None
    except UserError:  # from a signal (runtime/sigterm.py)
        raise
    except (OSError, ValueError):
        return None


def _succeeds(caller: _Caller, earlier: _Caller) -> bool:
    """True if the earlier caller is gone and this one is its restart."""
    return caller.process_id == earlier.process_id and earlier.hung_up()


def _contradiction(cluster: Cluster, callers: list[_Caller], caller: _Caller) -> str | None:
    """The problem with a new caller; None if it fits the cluster and the callers before it."""
    if caller.num_processes != cluster.num_processes:
        return (
            f"process {caller.process_id} was started for {caller.num_processes} processes and process 0 for "
            f"{cluster.num_processes}: start all with the same count"
        )
    if any(caller.process_id == other.process_id for other in callers):
        return f"two processes came as number {caller.process_id}: give each its own --process_id"
    return None


def _missing(cluster: Cluster, callers: list[_Caller], timeout: float) -> str:
    """The problem that some processes did not come in time, with up to eight of their numbers."""
    came = {caller.process_id for caller in callers}
    absent = [i for i in range(1, cluster.num_processes) if i not in came]
    names = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    return (
        f"{len(came) + 1} of {cluster.num_processes} processes came within {timeout:g} s, missing: {names}; "
        "start the same command on every host, and see whether the missing ones stopped with an error"
        f"{stale_slices()}"
    )
