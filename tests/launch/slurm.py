"""A real SLURM of two nodes on this machine, for tests; it needs root on Linux, and SLURM's own programs.

Each node is a slurmd in namespaces of its own: a host name, processes, and mounts, so that a folder can be
another one on each node. All state is in one folder, nothing of the machine's own configuration is used or
changed, and everything ends with the cluster. A GPU of a node is a count: training runs on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ONE_DEVICE, REPO
from tests.programs import free_port

NODES = ("n1", "n2")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare", "setpriv")
_PATIENCE = 900.0  # seconds that a start or an end may take on a loaded machine
_SBIN = "/usr/sbin:/sbin"
_ENDED = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")

# cred_expire: seconds that SLURM waits before it starts a requeued job again (120 unless set).
_CONF = """
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Gres=gpu:4
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Gres=gpu:4
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be had here; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM for tests needs root on Linux"
    absent = [name for name in _PROGRAMS if not shutil.which(name, path=_path())]
    if absent:
        return f"{', '.join(absent)} are not installed: apt-get install slurm-wlm munge"
    if subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "true"]).returncode:
        return "this container allows no namespaces"
    return None


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
      folder: its configuration, logs and state.
      root: stands for the repository on a file system that all nodes share; jobs write their logs here.
      private: a folder that is another one on each node.
      small: a disk of 30 MB that both nodes share, and this process does not.
      nodes: the process in whose namespaces both nodes are.
    """

    folder: Path
    root: Path
    private: Path
    small: Path
    nodes: int = 0

    def seen(self, path: Path) -> Path:
        """A path as the nodes see it, for this process."""
        return Path(f"/proc/{self.nodes}/root{path}")

    def call(self, *words: str) -> str:
        """Run one of SLURM's programs, or a script of launch/, and return what it prints."""
        done = subprocess.run(
            words, cwd=self.root, env=_environment(self.folder), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout

    def submit(self, *flags: str, tasks: int = 2, minutes: int = 60, sbatch: str = "") -> Job:
        """Submit a job with launch/slurm.sh: half of the tasks on each node."""
        options = [f"--nodes={len(NODES)}", f"--gpus_per_node={tasks // len(NODES)}"]
        options += [f"--time={minutes}", f"--sbatch={sbatch}", "--", *flags]
        said = self.call("launch/slurm.sh", *options)
        return Job(self, int(re.findall(r"\d+", said)[-1]))


@dataclass
class Job:
    """A submitted job."""

    cluster: Cluster
    number: int

    def facts(self) -> dict[str, str]:
        """What SLURM says of it: JobState, Restarts, ExitCode and so on."""
        shown = self.cluster.call("scontrol", "--oneliner", "show", "job", str(self.number))
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def log(self) -> str:
        """What its tasks and its script have printed, over all starts."""
        file = self.cluster.root / f"fqs_jax-{self.number}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def errors(self) -> list[str]:
        """The lines with faults."""
        return [line for line in self.log().splitlines() if line.startswith("error: ")]

    def steps(self) -> list[int]:
        """The steps that its progress lines show, over all starts."""
        return [int(step) for step in re.findall(r"^stage .*: (\d+)/", self.log(), re.MULTILINE)]

    def ask_to_stop(self) -> None:
        """Send the tasks SIGTERM, as SLURM does before the time limit."""
        self.cluster.call("scancel", "--signal=TERM", str(self.number))

    def cancel(self) -> None:
        """End it for good."""
        self.cluster.call("scancel", str(self.number))
        self.wait()

    def process(self, task: int) -> int:
        """The process id of a task, as seen outside of the nodes."""
        wanted = {f"SLURM_JOB_ID={self.number}", f"SLURM_PROCID={task}"}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_text(errors="replace").split("\0")
                command = (folder / "cmdline").read_text(errors="replace")
                if wanted <= set(variables) and "fqs_jax.launch" in command:
                    return int(folder.name)
        raise AssertionError(f"task {task} is not running:\n{self.log()}")

    def wait_until(self, condition: Callable[[], object], seconds: float = _PATIENCE) -> None:
        """Wait for a condition, which must hold before the job ends."""
        end = time.monotonic() + seconds
        while not condition():
            state = self.facts()["JobState"]
            assert state not in _ENDED, (state, self.log())
            assert time.monotonic() < end, self.log()
            time.sleep(0.5)

    def wait(self, seconds: float = _PATIENCE) -> dict[str, str]:
        """Wait until it has ended for good: its last facts."""
        end = time.monotonic() + seconds
        while (facts := self.facts())["JobState"] not in _ENDED:
            assert time.monotonic() < end, self.log()
            time.sleep(0.5)
        return facts


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """A cluster, which ends with the context."""
    root, private, small = (folder / name for name in ("root", "private", "small"))
    own = [folder / f"{kind}{name}" for kind in ("", "spool-") for name in NODES]
    for made in (folder / "state", root / ".venv/bin", private, small, *own):
        made.mkdir(parents=True)
    _copy_of_the_repository(root, folder / "bin")
    (folder / "slurm.conf").write_text(_conf(folder))
    (folder / "gres.conf").write_text(
        f"NodeName={','.join(NODES)} Name=gpu File={folder}/gpu[0-3]\n"
    )
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(NODES)}\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    cluster = Cluster(folder, root, private, small)
    with contextlib.ExitStack() as daemons:

        def start(name: str, *words: str) -> int:
            return daemons.enter_context(_daemon(folder, name, *words))

        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        start(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files
        )
        start("slurmctld", "slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        outer = start("nodes", *_nodes(cluster))
        _wait_for_nodes(cluster)
        [cluster.nodes] = map(int, Path(f"/proc/{outer}/task/{outer}/children").read_text().split())
        yield cluster


def _conf(folder: Path) -> str:
    """The configuration. JAX makes a port of the number of a job, so each cluster has other numbers."""
    ports = [free_port() for _ in range(3)]
    return _CONF.format(folder=folder, ports=ports, first_job=random.randrange(1, 4000))


def _copy_of_the_repository(root: Path, tools: Path) -> None:
    """Links to the repository, with this Python as its environment, and a `make` that finds that in order."""
    for name in ("configs", "fqs_jax", "launch", "tests"):
        (root / name).symlink_to(REPO / name)
    tools.mkdir()
    _script(root / ".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
    _script(tools / "make", "exit 0")


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def _nodes(cluster: Cluster) -> list[str]:
    """The command that starts the slurmd of each node, each in namespaces of its own within common ones."""
    folder = shlex.quote(str(cluster.folder))
    lines = [f"mount -t tmpfs -o size=30m small {shlex.quote(str(cluster.small))}"]
    for name in NODES:
        node = [
            f"hostname {name}",
            f"mount --bind {folder}/hosts /etc/hosts",
            f"mount --bind {folder}/{name} {shlex.quote(str(cluster.private))}",
            f"exec slurmd -D -N {name} -f {folder}/slurm.conf",
        ]
        lines.append(f"{shlex.join(_apart(node, '--uts'))} &")
    return _apart([*lines, "wait"])


def _apart(lines: Sequence[str], *more: str) -> list[str]:
    """Commands of a shell in namespaces of their own; all processes there end with its first one."""
    own = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *more]
    return ["unshare", *own, "sh", "-ec", "\n".join(lines)]


@contextlib.contextmanager
def _daemon(folder: Path, name: str, *words: str) -> Iterator[int]:
    """A program that runs until the context ends: its process id; what it prints is in a file."""
    bound = (
        "setpriv",
        "--pdeathsig",
        "KILL",
        *words,
    )  # it ends with this process, however that ends
    with open(folder / f"{name}.out", "wb") as out:
        process = subprocess.Popen(
            bound, env=_environment(folder), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        process.kill()  # the nodes' processes go with it
        process.wait()


def _wait_for_nodes(cluster: Cluster) -> None:
    """Wait until both nodes take jobs."""
    end, said = time.monotonic() + 60, ""
    while time.monotonic() < end:
        with contextlib.suppress(AssertionError):
            said = cluster.call("sinfo", "--noheader", "--Node", "--format=%T")
            if said.split() == ["idle"] * len(NODES):
                return
        time.sleep(0.2)
    logs = [path.read_text(errors="replace")[-2000:] for path in cluster.folder.glob("*.out")]
    raise AssertionError("\n".join(["the nodes do not come:", said, *logs]))


def _environment(folder: Path) -> dict[str, str]:
    """The environment of SLURM's programs; jobs inherit it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{folder}/bin:{_path()}"
    return own | ONE_DEVICE | {"PATH": path, "SLURM_CONF": f"{folder}/slurm.conf"}


def _path() -> str:
    return f"{os.environ['PATH']}:{_SBIN}"
