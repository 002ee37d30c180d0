"""Datasets of the Hugging Face hub, read from the Parquet files that the hub makes of each."""

from __future__ import annotations

from pathlib import Path

from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError

BRANCH = "refs/convert/parquet"  # holds CONFIG/SPLIT/0000.parquet, ...


def parquet_files(name: str, split: str, options: Options) -> list[Path]:
    """The files of a split in the order of their names.

    Args:
      name: OWNER/NAME, or OWNER/NAME/CONFIG.
      options: `download` allows to fetch what is not in the hub's own cache on this disk.

    Raises:
      UserError: not downloaded, no such dataset or split, or several configs and none is named.
    """
    owner, _, rest = name.partition("/")
    repo, _, config = rest.partition("/")
    if not owner or not repo:
        raise UserError(f"hub:{name}: write it as hub:OWNER/NAME[:SPLIT] or hub:OWNER/NAME/CONFIG")
    repo = f"{owner}/{repo}"
    folder = _download(repo, f"{config or '*'}/*{split}/*.parquet", options)
    partial = sorted(folder.glob(f"{config or '*'}/partial-{split}/*.parquet"))
    found = sorted(folder.glob(f"{config or '*'}/{split}/*.parquet"))
    configs = sorted({path.parent.parent.name for path in found})
    if len(configs) > 1:
        raise UserError(f"hub:{name} has several configs; name one: hub:{repo}/{configs[0]}")
    if partial and not found:
        raise UserError(
            f"hub:{name}: the hub converted only a part of {split!r}; download the dataset's own "
            "files and name those"
        )
    if not found:
        raise UserError(f"hub:{name}: no Parquet files of split {split!r}; check name and split")
    return found


def _download(repo: str, pattern: str, options: Options) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"hub:{repo} needs huggingface_hub: pip install 'fqs_jax[hf]'") from error
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            repo_type="dataset",
            revision=BRANCH,
            allow_patterns=[pattern],
            local_files_only=not options.download,
        )
    except errors.LocalEntryNotFoundError as error:
        if options.download:
            raise UserError(f"hub:{repo}: the hub cannot be reached, and it is not here") from error
        raise UserError(f"hub:{repo} is not downloaded; to fetch it, {options.to_fetch}") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"hub:{repo} cannot be downloaded ({reason})") from error
    return Path(folder)
