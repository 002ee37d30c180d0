"""Objects of a bucket of Google Cloud Storage: read and written whole, made exclusively, deleted.

An object appears complete or not at all, also for readers that read while it is replaced. It is never
appended to, renamed or locked. gcsfs tries again, with growing pauses, after 408, 429, 5xx and cut
connections, for a minute at most.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import logging
import os
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fqs_jax.runtime import repeated_requests
from fqs_jax.runtime.errors import UserError, printable

_PREFIX = "gs://"
_MISSING = "needs gcsfs: pip install 'fqs_jax[gcs]'"
LIBRARIES = ("gcsfs", "aiohttp", "google", "requests")  # whose exceptions a request may raise
# Words in the errors of gcsfs, TensorStore and Google's libraries, and what they mean.
_MEANINGS = (
    (
        ("401", "Anonymous", "credentials", "UNAUTHENTICATED", "Invalid Credentials"),
        "no credentials for it: run gcloud auth application-default login, or set "
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (("403", "Forbidden", "PERMISSION_DENIED"), "your account has no right to do that there"),
    (("404", "NOT_FOUND", "does not exist"), "there is no such bucket"),
)


@functools.cache
def client() -> Any:
    """The file system of all buckets, the same one as that of `etils.epath`, without remembered listings.

    gcsfs takes a folder for absent if it cannot be read. This one raises, because an outage must never look
    like a run without checkpoints.

    Raises:
      UserError: gcsfs is not installed.
    """
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError(f"a path in a bucket (gs://) {_MISSING}") from error
    # They say for each bucket that they could not ask what kind it is, and print each error that they raise.
    for name in ("gcsfs", "fsspec", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Where TensorFlow is installed, etils would read buckets with that.
    os.environ.setdefault("EPATH_USE_TF", "false")

    class Buckets(fsspec.get_filesystem_class("gcs")):  # type: ignore[misc]
        async def _isdir(self, path: str) -> bool:
            return await _known(self._info(path), path) == "directory"

        async def _isfile(self, path: str) -> bool:
            return await _known(self._info(path), path) == "file"

        async def _exists(self, path: str, **settings: Any) -> bool:
            return bool(await _known(self._info(path, **settings), path))

    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, Buckets, clobber=True)
    settings = fsspec.config.conf.setdefault("gcs", {})
    settings.setdefault("use_listings_cache", False)
    settings.setdefault("session_kwargs", {"trace_configs": [repeated_requests.trace()]})
    return fsspec.filesystem("gcs", finalize_on_close=True)


async def _known(info: Awaitable[dict[str, Any]], place: str) -> str:
    """The kind of object that is there, "file" or "directory"; "" for nothing. Anything else is an error."""
    try:
        with explained("read", f"{_PREFIX}{place.removeprefix(_PREFIX)}"):
            return str((await info)["type"])
    except FileNotFoundError:
        return ""


def path(name: str) -> Any:
    """The path of an object or folder, by its gs:// name.

    Raises:
      UserError: gcsfs is not installed.
    """
    client()
    from etils import epath

    return epath.Path(name)


@contextlib.contextmanager
def explained(doing: str, place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a request into a UserError of one line; FileNotFoundError is left as it is.

    Args:
      doing: what fails, such as "write".
    """
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:  # of gcsfs, aiohttp, requests, google.auth: they share no base
        raise UserError(
            f"cannot {doing} {printable(os.fspath(place), 300)}: {reason(error)}"
        ) from error


def reason(error: BaseException) -> str:
    """Why a request failed, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = str(getattr(error, "code", "") or "")
    for words, meaning in _MEANINGS:
        if code and code in words or any(word in text for word in words if not word.isdigit()):
            return meaning
    return printable(text, 200)


def check_writable(place: Path) -> None:
    """Refuse a bucket that does not exist, or where this process may not write.

    An object is written and deleted, as gcsfs does it and as TensorStore does it.

    Raises:
      UserError: with the reason.
    """
    bucket = os.fspath(place).removeprefix("gs://").partition("/")[0]
    try:
        with explained("use", place):
            probe = place / f".probe-{os.urandom(8).hex()}"
            write(probe, b"")
            # It may be gone already, by a request whose answer was lost.
            with contextlib.suppress(FileNotFoundError):
                client().rm_file(os.fspath(probe))
            _check_tensorstore(place)
    except FileNotFoundError as error:
        raise UserError(
            f"cannot use {place}: there is no bucket {bucket}; check the name"
        ) from error


def check_readable(place: Path) -> None:
    """Refuse a bucket that this process may not read; a folder that does not exist is no fault.

    Raises:
      UserError: with the reason.
    """
    with contextlib.suppress(FileNotFoundError), explained("read", place):
        client().ls(os.fspath(place))


def _check_tensorstore(place: Path) -> None:
    """Write and delete an object with the library that writes the arrays, and has credentials of its own."""
    import tensorstore

    bucket, _, name = os.fspath(place).removeprefix("gs://").partition("/")
    spec = {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}
    store = tensorstore.KvStore.open(spec).result(timeout=120)
    key = f".probe-{os.urandom(8).hex()}"
    store.write(key, b"").result(timeout=120)
    store.delete_range(tensorstore.KvStore.KeyRange(key, f"{key}~")).result(timeout=120)


def read(place: Path) -> bytes:
    """The content of an object.

    Raises:
      FileNotFoundError: it does not exist.
      UserError: any other reason.
    """
    with explained("read", place):
        return client().cat_file(os.fspath(place))


def open_file(place: Path) -> BinaryIO:
    """The content of an object as a file in memory; errors as for `read`."""
    return io.BytesIO(read(place))


def write(place: Path, content: bytes) -> None:
    """Write an object; one that exists is replaced.

    Raises:
      FileNotFoundError: there is no such bucket.
      UserError: any other reason.
    """
    with explained("write", place):
        client().pipe_file(os.fspath(place), content)


def create(place: Path, content: bytes) -> bool:
    """Write an object that does not exist; False if it does. Of several processes one succeeds.

    Raises: as for `write`.
    """
    try:
        with explained("write", place):
            client().pipe_file(os.fspath(place), content, mode="create")
    except FileExistsError:
        return read(place) == content  # written by this very call, whose first answer was lost
    return True


def objects(folder: Path) -> dict[str, dict[str, Any]]:
    """The details of all objects in a folder and its folders, by name relative to it; empty without any.

    Raises:
      UserError: they cannot be listed.
    """
    prefix = os.fspath(folder).removeprefix("gs://") + "/"
    try:
        with explained("read", folder):
            found = client().find(os.fspath(folder), detail=True)
    except FileNotFoundError as error:
        raise UserError(
            f"cannot read {printable(str(folder), 300)}: there is no such bucket"
        ) from error
    return {
        name.removeprefix(prefix): info
        for name, info in sorted(found.items())
        # Names that end in "/" are empty objects that stand for folders, as Google's console makes them.
        if name.startswith(prefix) and not name.endswith("/") and info.get("type") != "directory"
    }


def delete(folder: Path, first: tuple[str, ...] = ()) -> None:
    """Delete an object, or all objects in a folder.

    Args:
      first: names in the folder that go before all others.
    """
    place = os.fspath(folder)
    for name in first:
        with contextlib.suppress(FileNotFoundError):
            client().rm_file(f"{place}/{name}")
    names = [f"{place}/{name}" for name in objects(folder)] or [place]
    plain = [name for name in names if not glob.has_magic(name)]
    if plain:
        with contextlib.suppress(FileNotFoundError), explained("delete", folder):
            client().rm(plain)
    for name in set(names) - set(plain):  # in a list they would be patterns
        with contextlib.suppress(FileNotFoundError), explained("delete", name):
            client().rm_file(name)


def copy(folder: Path, target: Path, last: tuple[str, ...]) -> None:
    """Copy all objects in a folder to another folder of a bucket, without a way through this machine.

    Those that are deleted meanwhile, such as old checkpoints, are left out.

    Args:
      last: names of objects, in whatever folder, that are copied after all others, in this order.

    Raises:
      UserError: the bucket refuses.
    """
    rank = {name: number for number, name in enumerate(last)}
    for name in sorted(objects(folder), key=lambda name: (rank.get(Path(name).name, -1), name)):
        try:
            with explained("write", target / name):
                client().cp_file(os.fspath(folder / name), os.fspath(target / name))
        except FileNotFoundError as error:
            if (folder / name).exists():
                raise UserError(f"cannot write {target}: there is no such bucket") from error


def upload(folder: Path, target: Path, last: tuple[str, ...]) -> None:
    """Copy the files of a folder of this machine into a bucket.

    Args:
      last: names that are written after all others, in this order: with them the copy counts as whole.

    Raises:
      FileNotFoundError: there is no such bucket.
      UserError: any other reason.
    """
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in sorted(names, key=lambda name: (last.index(name) + 1 if name in last else 0, name)):
        with explained("write", target / name):
            client().put_file(str(folder / name), os.fspath(target / name))
