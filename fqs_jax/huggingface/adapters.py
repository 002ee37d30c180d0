"""Export of adapters as a PEFT folder: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fqs_jax.huggingface import finite, model_card
from fqs_jax.huggingface.tensors import TENSORS
from fqs_jax.huggingface.writing import save, write_thought
from fqs_jax.model.decoder import Params
from fqs_jax.model.lora import A, B, Lora
from fqs_jax.runtime import files, paths

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CARD = """\
---
library_name: peft
---

# {name}

Low-rank adapters written by fqs_jax, rank {rank}, for {targets}.

- Base: {base}
- Load: `peft.PeftModel.from_pretrained(base, folder)`, with exactly the weights that they were trained beside

{thoughts}"""


def export_adapters(
    adapters: Params,
    lora: Lora,
    out: str | Path,
    base: str,
    dtype: str = "float32",
    thought: Params | None = None,
    thought_settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that peft loads over the base; it appears complete or not at all.

    Args:
      adapters: the `lm` part of a trained tree.
      out: a folder that does not exist yet or is empty.
      base: name of the base, for adapter_config.json and the model card.
      dtype: type of the adapters.
      thought, thought_settings: as in `export`; peft ignores their file.

    Raises:
      UserError: `out` exists or cannot be written, or a value is NaN, infinite or too large for `dtype`.
    """
    tensors: dict[str, np.ndarray] = {}
    modules = {}
    for row in TENSORS:
        target = row.path.split("/")[1]
        if target not in lora.targets or not row.path.endswith("/kernel"):
            continue
        module = row.name.removesuffix(".weight")
        modules[target] = module.rsplit(".", 1)[1]
        down, up = (adapters["layers"][target][part] for part in (A, B))
        for part, leaf in ((A, down), (B, up)):
            finite.check_fits(leaf, dtype, f"parameter layers.{target}.{part}")
        for layer in range(len(down)):
            prefix = f"base_model.model.{module.format(layer)}"
            # peft stores [rank, inputs] and [outputs, rank]; joined axes are in the order of ours.
            matrices = {
                "lora_A": np.asarray(down[layer]).reshape(-1, lora.rank),
                "lora_B": np.asarray(up[layer]).reshape(lora.rank, -1),
            }
            for name, matrix in matrices.items():
                tensors[f"{prefix}.{name}.weight"] = matrix.T.astype(dtype)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [modules[name] for name in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with files.new_folder(out) as folder:
        save(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if thought is not None:
            write_thought(folder, thought, thought_settings)
        card = CARD.format(
            name=model_card.escaped(paths.full(paths.expand(out)).name),
            rank=lora.rank,
            targets=", ".join(modules.values()),
            base=model_card.code(base),
            thoughts=model_card.thoughts(thought is not None),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
