"""The scripts of launch/: their commands, and their behaviour with stand-ins for the real tools."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch import packages

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
TPU_VM = ("tpu_vm.sh", "--tpu=t", "--zone=z", "--hosts=4")
GKE = ("gke_xpk.sh", "--cluster=c", "--workload=w", "--tpu_type=v5litepod-16", "--image=i")
SLURM = ("slurm.sh", "--nodes=2", "--gpus_per_node=8", "--time=24:00:00")
FLAGS = ("--config=configs/tiny.py", "--text=it's; a/*.txt $HOME", "--workdir=/shared/my runs")


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "launch" / words[0], *words[1:]],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | environment,
    )


def dry_run(*words: str) -> list[list[str]]:
    """The words of each command that a dry run prints."""
    done = launch(*words, "--dry_run", "--", *FLAGS)
    assert done.returncode == 0, done.stderr
    return [_bash_words(line) for line in done.stdout.splitlines()]


def _bash_words(line: str) -> list[str]:
    program = f"printf '%s\\0' {line}"
    return subprocess.check_output(["bash", "-c", program], text=True).split("\0")[:-1]


def tool(folder: Path, name: str, program: str) -> None:
    """A stand-in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{program}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax_and_mode(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) == (
        script.suffix == ".sh" and script.name != "common.sh"
    )  # the others are sourced, or read by sbatch


@pytest.mark.cluster
@packages.needs("shellcheck")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        [packages.program("shellcheck"), "-x", *SCRIPTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["gke_xpk.sh", "gpu_box.sh", "slurm.sh", "tpu_vm.sh"])
def test_help_is_the_head_of_the_script(script: str) -> None:
    done = launch(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout and "--dry_run" in done.stdout
    assert "source" not in done.stdout


def test_gpu_box() -> None:
    install, train = dry_run("gpu_box.sh", "--gpus=8")
    assert install == ["make", "EXTRAS=cuda", ".venv/.installed-cuda"]
    assert train[:3] == [".venv/bin/python", "-m", "fqs_jax.launch"]
    assert train[3:] == ["--expect_processes=1", *FLAGS]


@pytest.mark.parametrize(
    "script, given, extra", [("gpu_box.sh", "--gpus=8", "cuda"), ("tpu_vm.sh", "", "tpu")]
)
def test_a_place_in_a_bucket_brings_its_extra(script: str, given: str, extra: str) -> None:
    options = [given] if given else ["--tpu=t", "--zone=z", "--hosts=2"]
    done = launch(script, *options, "--dry_run", "--", "--workdir=gs://bucket/W")
    assert f"EXTRAS={extra},gcs .venv/.installed-{extra}-gcs" in done.stdout


def test_slurm() -> None:
    install, submit = dry_run(*SLURM, "--sbatch=--partition=p --account=a")
    assert install[0] == "make"
    assert submit[0] == "sbatch"
    options, script, flags = submit[1:-5], submit[-5], submit[-4:]
    assert options == [
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=24:00:00",
        f"--chdir={ROOT}",
        "--partition=p",
        "--account=a",
    ]
    assert Path(script) == ROOT / "launch/slurm.sbatch"
    assert flags == ["--expect_processes=16", *FLAGS]


def test_gke_xpk() -> None:
    [create] = dry_run(*GKE, "--hosts=8", "--num_slices=2", "--xpk=--storage=s --spot", "--zone=z")
    assert create[:3] == ["xpk", "workload", "create"]
    assert {"--cluster=c", "--workload=w", "--tpu-type=v5litepod-16", "--docker-image=i"} < set(
        create
    )
    assert {"--num-slices=2", "--zone=z", "--storage=s", "--spot"} < set(create)
    command = create[-1].removeprefix("--command=exec ")
    words = ["python", "-m", "fqs_jax.launch", "--expect_processes=8", *FLAGS]
    assert _bash_words(command) == words


def test_tpu_vm() -> None:
    pack, copy, start = dry_run(*TPU_VM, "--project=p", "--setup=mount /shared")
    assert pack[0] == "tar" and "fqs_jax" in pack
    head = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=z", "--project=p", "--worker=all"]
    assert copy == [*head, "scp", pack[pack.index("-czf") + 1], "t:fqs_jax.tgz", *where]
    assert start[:-1] == [*head, "ssh", "t", *where]
    remote = start[-1].removeprefix("--command=").splitlines()
    assert "mount /shared" in remote
    [training] = [line for line in remote if "fqs_jax.launch" in line and "nohup" in line]
    words = training.removeprefix("setsid nohup ").partition(" >>run.log")[0]
    assert _bash_words(words)[3:] == ["--expect_processes=4", *FLAGS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tpu_vm.sh", "--tpu=t"), "--zone is missing; see --help"),
        (("tpu_vm.sh", "--tpu=t", "--zone=z"), "--hosts is missing; see --help"),
        ((*TPU_VM, "--action=run"), "--action=run is not start, follow or stop"),
        ((*SLURM, "--nodes=two"), "--nodes=two is not a whole number above 0"),
        (("slurm.sh", "--nodes=2", "--gpus_per_node=8"), "--time is missing; see --help"),
        (
            SLURM,
            "--workdir=DIR is missing behind --: a folder that all nodes share, or gs://BUCKET/NAME",
        ),
        ((*GKE, "--hosts=3", "--num_slices=2"), "--hosts=3 cannot be spread over --num_slices=2"),
        (("gke_xpk.sh", "--workload=w"), "--cluster is missing; see --help"),
        (("gpu_box.sh", "--config=c.py"), "gpu_box.sh has no option --config; see --help"),
        (("gpu_box.sh", "-x"), "-x is not --name=value; flags of fqs_jax.launch come after --"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str) -> None:
    done = launch(*words, "--dry_run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.endswith(f"{message}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"), [(TPU_VM, "gcloud"), ((*GKE, "--hosts=4"), "xpk"), (SLURM, "sbatch")]
)
def test_missing_tool(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    for needed in ("bash", "dirname"):
        (tmp_path / needed).symlink_to(str(shutil.which(needed)))
    done = launch(*words, PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name} is not installed here: see ")


def test_gpu_box_counts_gpus(tmp_path: Path) -> None:
    tool(tmp_path, "nvidia-smi", r"printf '0\n1\n'")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch("gpu_box.sh", "--gpus=8", PATH=path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: 2 GPUs are visible here, expected were 8\n",
    )
    done = launch("gpu_box.sh", "--gpus=8", PATH=path, CUDA_VISIBLE_DEVICES="3")
    assert done.stderr == "error: 1 GPUs are visible here, expected were 8\n"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True)])
def test_slurm_job_goes_back_into_the_queue_when_it_was_stopped(
    code: int, requeued: bool, tmp_path: Path
) -> None:
    flags = (*FLAGS[:-1], f"--workdir={tmp_path}")
    done = slurm_job(tmp_path, f'printf "%s\\n" "$@"; exit {code}', *flags)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert ("scontrol requeue 7" in lines) == requeued
    assert [line for line in lines if line in flags] == list(flags)


def slurm_job(
    tools: Path, srun: str, *flags: str, job: int = 7, **variables: str
) -> subprocess.CompletedProcess[str]:
    """One start of a job of SLURM, with a program in the place of its tasks."""
    tool(tools, "srun", srun)
    tool(tools, "scontrol", 'echo "scontrol $*"')
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": str(job), **variables}
    command = ["bash", str(ROOT / "launch/slurm.sbatch"), *flags]
    return subprocess.run(
        command, cwd=tools, capture_output=True, text=True, env=os.environ | environment
    )


@pytest.mark.parametrize("form", ["--workdir={}", "--workdir {}"])
def test_slurm_job_that_saves_nothing_new_ends_at_the_third_start(
    form: str, tmp_path: Path
) -> None:
    """A checkpoint, and another job, begin a new count; one that was cut short does not.

    The shell leaves the ~ in --workdir=~/W as it is; the program does not.
    """
    folder = tmp_path / "W/stage_0/checkpoints"
    stopped, saving = "exit 143", f"mkdir -p {folder}/$(date +%N); exit 143"
    begun = f"mkdir -p {folder}/7.orbax-checkpoint-tmp; exit 143"
    starts = [(stopped, 7), (saving, 7), (stopped, 7), (stopped, 7), (stopped, 8), (begun, 8)]
    codes = []
    for srun, job in [*starts, (stopped, 8)]:
        flags = form.format("~/W").split(" ")
        done = slurm_job(tmp_path, srun, *flags, job=job, HOME=str(tmp_path))
        codes.append(done.returncode)
        assert (f"scontrol requeue {job}\n" == done.stdout) == (done.returncode == 143)
    assert codes == [143] * 6 + [2]
    assert done.stderr.startswith(
        f"error: three starts in a row saved nothing new in {tmp_path}/W, "
    )
    assert done.stderr.count("\n") == 1


def test_slurm_job_asks_a_bucket_what_was_saved(tmp_path: Path) -> None:
    """A folder takes the place of the bucket; there, a checkpoint counts with its last object."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    tool(
        tmp_path / ".venv/bin",
        "python",
        f'{sys.executable} "$1" "$2" "{tmp_path}/${{3#gs://}}"',
    )
    step = tmp_path / "bucket/W/stage_0/checkpoints/20-1"
    begun = f"mkdir -p {step}; exit 143"
    starts = [begun, f"touch {step}/commit_success.txt; exit 143", *["exit 143"] * 3]
    done = [slurm_job(tmp_path, srun, "--workdir=gs://bucket/W") for srun in starts]
    assert [job.returncode for job in done] == [143, 143, 143, 143, 2]


def test_slurm_job_without_a_working_directory_is_refused(tmp_path: Path) -> None:
    done = slurm_job(tmp_path, "exit 143", "--stage=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: give --workdir=DIR, a folder that all nodes share, or gs://BUCKET/NAME\n"
    )


def test_slurm_job_that_cannot_be_counted_ends(tmp_path: Path) -> None:
    (tmp_path / "fqs_jax-7.restarts").mkdir()
    done = slurm_job(tmp_path, "exit 143", f"--workdir={tmp_path}/none")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the workers are Linux")
def test_tpu_vm_starts_follows_and_stops(tmp_path: Path) -> None:
    """A local folder takes the part of the worker."""
    worker, tools = tmp_path / "worker", tmp_path / "tools"
    worker.mkdir()
    tool(
        tools,
        "gcloud",
        "for word; do [[ $word != --command=* ]] || command=${word#--command=}; done\n"
        f'if [[ $4 == scp ]]; then cp "$5" {shlex.quote(str(worker))}/fqs_jax.tgz\n'
        f'else HOME={shlex.quote(str(worker))} bash -c "$command"; fi',
    )
    tool(
        tools, "make", f"mkdir -p .venv/bin; cp {shlex.quote(str(tools))}/training .venv/bin/python"
    )
    tool(
        tools,
        "training",
        """trap 'echo saved; exit 143' TERM; printf '%s\\n' "$@"; for i in {1..400}; do sleep 0.05; done""",
    )
    path = f"{tools}:{os.environ['PATH']}"
    assert launch(*TPU_VM, "--action=stop", PATH=path).stdout == "nothing is running here\n"
    first = subprocess.Popen(
        [ROOT / "launch" / TPU_VM[0], *TPU_VM[1:], "--", *FLAGS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path},
        start_new_session=True,
    )
    try:
        log = worker / "fqs_jax/run.log"
        for _ in range(200):
            if log.exists() and FLAGS[-1] in log.read_text():
                break
            time.sleep(0.05)
        again = launch(*TPU_VM, "--", *FLAGS, PATH=path)
        assert again.returncode == 2 and "error: a run is alive here" in again.stderr
        assert launch(*TPU_VM, "--action=stop", PATH=path).returncode == 0
        lines = first.communicate(timeout=20)[0].splitlines()
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert lines == ["-m", "fqs_jax.launch", "--expect_processes=4", *FLAGS, "saved"]
    assert first.returncode == 143


def test_container_is_small_and_not_root() -> None:
    lines = (ROOT / "launch/Containerfile").read_text().splitlines()
    assert lines.index("USER fqs") > max(i for i, line in enumerate(lines) if line[:3] == "RUN")
    assert "ARG EXTRA=cuda" in lines
    [install] = [line for line in lines if "pip install" in line]
    package = install.split()[-1]
    for extra, wanted in (("tpu", ".[tpu]"), ("", ".")):
        printed = subprocess.check_output(["sh", "-c", f"EXTRA={extra}; echo {package}"], text=True)
        assert printed == f"{wanted}\n"
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
