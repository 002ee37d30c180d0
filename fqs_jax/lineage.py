"""What a stage is made from, as a record of JSON values: what may change in it, and what has.

A record holds the stage's row, the config, a digest of its data, and the records it was made from.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Fields that may change between two starts of the same stage.
HARMLESS = (
    "steps",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "max_bad_steps",
    # How a step is computed; its result is the same up to rounding.
    "microbatches",
    "remat",
    "vocab_chunk",
    "position_chunk",
    "attention",
    "workers",
    "cache_dir",
    "tfds_dir",
    "download",
)


def _is_harmless(key: str, fields: tuple[str, ...] = HARMLESS) -> bool:
    """Whether a field, by its dotted path, may change."""
    return key.rsplit(".", 1)[-1] in fields or key.startswith("config.mesh.")


def digest(run: dict[str, Any]) -> str:
    """A hash of what a stage is made from, without the fields that may change."""
    kept = {key: value for key, value in _flat(run).items() if not _is_harmless(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def change(before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...] = ()) -> str:
    """The first field that differs, with both values; empty if none does."""
    flat_before, flat_now = _flat(before), _flat(now)
    for key in flat_now | flat_before:
        old, new = flat_before.get(key), flat_now.get(key)
        if old != new and not _is_harmless(key, ignored):
            return f"{key}={old!r}, now it is {new!r}"
    return ""


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
