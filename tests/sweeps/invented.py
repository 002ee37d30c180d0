"""Sweeps and results of cells that no model was trained for."""

from __future__ import annotations

import json
from typing import Any

import ml_collections

from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.variants import variant


def sweep(**changes: Any) -> ml_collections.ConfigDict:
    fields = {
        "config": "configs/shorten.py",
        "seeds": (0, 3),
        "overrides": ("data.num_documents=500",),
        "variants": (variant("plain"), variant("short", "stage_1.n_ahead=6", stages="1,base")),
        "show_once": (0,),
    }
    config = ml_collections.ConfigDict(fields | changes)
    for key in [key for key in config if config[key] is None]:
        del config[key]
    return config


def write_result(cell: Cell, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Write a result with costs that are easy to tell apart."""
    training = {
        str(n): {"tokens": 100 + n, "flops": 1000 + n, "after_base_flops": n}
        for n in cell.stage_numbers
    }
    fields = {"seed": cell.seed, "flags": cell.flags, "commit": "abc", "chance": 1 / 7}
    cell.folder.mkdir(parents=True)
    content = fields | {"training": training, "rows": rows} | changes
    (cell.folder / "result.json").write_text(json.dumps(content))


def row(stage: str, name: str, accuracy: float, nll: float, **changes: Any) -> dict[str, Any]:
    fields = {"stage": stage, "name": name, "accuracy": accuracy, "nll": nll, "temperature": 1.0}
    return fields | {"kind": "base" if stage == "0" else "thinking"} | changes
