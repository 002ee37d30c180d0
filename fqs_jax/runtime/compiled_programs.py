"""Compiled programs are kept between runs, in the cache folder or in a working directory in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

from fqs_jax.runtime import buckets, files, inputs, paths, processes
from fqs_jax.runtime.notes import note

FOLDER = "compiled"  # in a working directory in a bucket
NAMED = "JAX_COMPILATION_CACHE_DIR"  # a variable of the environment
_WORTH_KEEPING = 0.1  # seconds of compiling


def keep() -> None:
    """Cache programs that took at least a tenth of a second to compile in the user's cache folder.

    Each program of plain generation compiles in less than JAX's own limit of a second, but together they
    take three.

    JAX_COMPILATION_CACHE_DIR names another folder, or one in a bucket; JAX_ENABLE_COMPILATION_CACHE=false
    disables the cache. Several processes need a folder that all of them share, so there is no default for
    them here (see `keep_in`): only process 0 writes to it. If some hosts load a cached program while others
    compile and tune it together on GPUs, they can deadlock.

    Raises:
      UserError: the named folder is in a bucket, and gcsfs is not installed.
    """
    import jax

    named = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not _is_wanted():
        return
    if named and paths.is_bucket(named):
        _prepare_bucket()
    if named or processes.is_distributed():
        return
    folder = files.cache_folder() / "jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_ours = folder.stat().st_uid == os.getuid()  # its programs are run
        usable = is_ours and os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if usable:
        _use(str(folder))
    else:
        note(f"{inputs.name(folder)} cannot be used, so compiled programs are not kept")


def keep_in(root: Path) -> None:
    """Cache the programs of a run in its working directory, if that is in a bucket and no folder is named.

    So a restart on another machine, or on many, does not compile.
    """
    if not paths.is_bucket(root) or not _is_wanted() or os.environ.get(NAMED):
        return
    from jax.experimental.compilation_cache import compilation_cache

    _prepare_bucket()
    _use(f"{root}/{FOLDER}")
    compilation_cache.reset_cache()  # JAX opens its folder once


def _is_wanted() -> bool:
    import jax

    return bool(jax.config.jax_enable_compilation_cache)  # type: ignore[attr-defined]


def _use(folder: str) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _prepare_bucket() -> None:
    """Let JAX use a folder in a bucket, which it does through etils."""
    import jax

    buckets.client()
    # XLA's own files of tuned kernels: it knows no buckets, and a cached program needs no tuning.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
