"""Files and folders that are written: they appear complete or not at all.

A file or folder gets its name by a rename, after its content has reached the disk. So neither a kill
nor a power cut leaves a part of it under that name. In a bucket, where objects are whole by themselves, the
file of `LAST` in a folder is written after all others, and readers take a folder without it for absent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import re
import shutil
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fqs_jax.runtime import buckets, inputs, leases, outputs, paths
from fqs_jax.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np  # takes long to import, and every program imports this file

# Of a Hugging Face folder, of adapters, of a dataset, of W/source: in a bucket, each after those before it.
LAST = ("dataset_info.json", "adapter_config.json", "config.json", "origin.json")
_UNFINISHED = ".unfinished"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def cache_folder() -> Path:
    """The user's folder for everything that can be made again; a temporary one for users without a home."""
    home = os.path.expanduser("~")
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "fqs_jax"
    if not os.path.isabs(home):  # neither HOME nor the system names one
        return Path(tempfile.gettempdir()) / f"fqs_jax_{os.getuid()}"
    return Path(home) / ".cache" / "fqs_jax"


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it; a bucket needs none."""
    if not paths.is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def entries(folder: Path) -> list[Path]:
    """All that is in a folder, in no order; nothing if it does not exist."""
    return list(folder.iterdir()) if folder.is_dir() else []


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, with null for numbers that JSON lacks; see `replace`."""
    write_text(path, json_text(value, indent=1))


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON, with null for numbers that JSON lacks: NaN and the infinities."""
    return json.dumps(nan_as_none(value), indent=indent, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `replace`."""
    replace(path, lambda file: file.write(text.encode()))


def nan_as_none(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON lacks, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: nan_as_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace(path: Path, write: Callable[[BinaryIO], object], many_writers: bool = False) -> None:
    """Write a file that appears complete or not at all; an existing file is replaced.

    Once this returns, the new file survives a power cut. If it raises, the old one is untouched.

    Args:
      write: writes the content into an open file.
      many_writers: several processes may write this file at the same time; the last one wins.

    Raises:
      UserError: the path is a link, a folder or a device, which a rename would replace.
    """
    if paths.is_bucket(path):
        content = io.BytesIO()
        write(content)
        _write_object(path, content.getvalue())
        return
    outputs.check_kind(path)
    # With one writer the name is always the same: the next write overwrites what a kill has left.
    unique = f".{uuid.uuid4().hex[:8]}" if many_writers else ""
    temporary = path.with_name(f".{path.name}{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # of a write, which names no file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    sync_folder(path.parent)


def _write_object(path: Path, content: bytes) -> None:
    """Write an object of a bucket, unless another run has taken the folder over.

    Raises:
      UserError: it has, or the bucket refuses.
    """
    leases.check(path)
    try:
        buckets.write(path, content)
    except FileNotFoundError as error:
        raise UserError(f"cannot write {inputs.name(path)}: there is no such bucket") from error


def save_array(file: BinaryIO, values: np.ndarray) -> None:
    """Write an array into an open file as `.npy`."""
    import numpy as np

    # Numpy itself would report a full disk as a number of items that were not written.
    np.save(types.SimpleNamespace(write=file.write), values, allow_pickle=False)


def sync_tree(folder: Path) -> None:
    """Make the files in a folder, and all names in it, survive a power cut."""
    for place, _, names in os.walk(folder):
        for name in names:
            with Path(place, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def replace_array(path: Path, values: np.ndarray) -> None:
    """Write a `.npy` file of the cache; see `replace_in_cache`."""
    replace_in_cache(path, lambda file: save_array(file, values))


def replace_in_cache(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file of the cache, and its folder; several processes may write the same file.

    Raises:
      UserError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, write, many_writers=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; set data.cache_dir to a folder "
            "with room (--cache_dir of fqs prepare)"
        ) from error


def check_free(out: str | Path) -> Path:
    """The full path of a folder that may be written: nothing is there, or an empty folder.

    Raises:
      UserError: there is a file, a device, a link or a folder that is not empty.
    """
    path = paths.expand(out)
    shown = inputs.name(out)
    if paths.is_bucket(path):
        found = buckets.objects(path)
        if (found or (path.exists() and not path.is_dir())) and _UNFINISHED not in found:
            raise UserError(f"{shown} exists already: choose another name or remove it first")
        return path
    try:
        if path.is_symlink():
            raise UserError(
                f"{shown} exists already, as a link to {inputs.name(os.readlink(path))}: choose "
                "another name or remove it first"
            )
        path = path.resolve()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{shown} exists already: choose another name or remove it first")
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {shown}: {reason}") from error
    return path


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A temporary sibling of `out` that is renamed to `out` when the block ends without an error.

    What processes that were killed have left of the same folder is removed.

    Raises:
      UserError: `out` is a file, a link or a folder that is not empty, or the disk refuses.
    """
    out = check_free(out)
    if paths.is_bucket(out):
        with tempfile.TemporaryDirectory(dir=_made(cache_folder())) as place:
            yield Path(place)
            leases.check(out)
            check_free(out)  # the work took its time
            _upload(Path(place), out)
        return
    temporary, owner = None, None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        temporary, owner = _owned_sibling(out)
        yield temporary
        sync_tree(temporary)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {inputs.name(out)}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if owner is not None:
            os.close(owner)
    sync_folder(out.parent)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _upload(folder: Path, out: Path) -> None:
    """Copy a folder into a bucket. Until it is whole, an object says so, and the next writer begins anew."""
    try:
        buckets.delete(out)
        if not buckets.create(out / _UNFINISHED, os.urandom(8)):
            raise UserError(f"{inputs.name(out)} is being written by another process")
        buckets.upload(folder, out, LAST)
        buckets.delete(out / _UNFINISHED)
    except FileNotFoundError as error:
        raise UserError(f"cannot write {inputs.name(out)}: there is no such bucket") from error


def remove(path: Path) -> None:
    """Remove a file or an object of a bucket.

    Raises:
      OSError, UserError: it cannot be removed.
    """
    if paths.is_bucket(path):
        leases.check(path)
        buckets.delete(path)
    else:
        path.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder; of one in a bucket, first what makes it count as whole.

    Raises:
      OSError, UserError: it cannot be removed.
    """
    if paths.is_bucket(folder):
        leases.check(folder)
        buckets.delete(folder, tuple(reversed(LAST)))
    else:
        shutil.rmtree(folder)


def _owned_sibling(out: Path) -> tuple[Path, int]:
    """A new hidden folder beside `out`, and a descriptor that keeps it locked while this process lives."""
    while True:
        temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir()
        try:
            owner = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # removed as abandoned before it could be locked
        if try_lock(owner) is not False and temporary.exists():
            return temporary, owner
        os.close(owner)


def _remove_abandoned(out: Path) -> None:
    """Remove the hidden folders of writers of `out` that no longer live: nobody has them locked."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.tmp")
    left: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that may be written, but not listed
        left += [path for path in out.parent.iterdir() if pattern.fullmatch(path.name)]
    for path in left:
        with contextlib.suppress(OSError):  # removed by another process, or not ours to remove
            owner = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(owner):
                    shutil.rmtree(path)
            finally:
                os.close(owner)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder, until it is closed or this process ends.

    Returns:
      True if it is locked now, False if another process has it, None on a disk without locks.

    Raises:
      OSError: anything else.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _WITHOUT_LOCKS:
            return None
        raise
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, on file systems that offer it."""
    with contextlib.suppress(OSError):  # some network file systems refuse to open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
