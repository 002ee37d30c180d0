"""The README.md of an exported folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fqs_jax.huggingface.tensors import THOUGHT, tensor_shapes
from fqs_jax.model.config import ModelConfig

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A causal language model written by fqs_jax, which trains models to think before each token in ever
fewer tokens (Quiet-STaR, Fast Quiet-STaR) and at last without thoughts.

- Base: {base}
- Size: {num_params:,} parameters, {num_layers} layers of width {width}, vocabulary {vocab_size},
  stored as {dtype}
- Files: stock config, weights and (if it came with one) tokenizer; transformers and vLLM load them
  with no further code

{thoughts}
Nothing is claimed here about its quality or safety: it inherits the limits, and the licence, of its
base and of the text it was trained on. Evaluate it before use.
"""

THINKING = """\
## Thoughts

This model was trained to think. The stock weights alone are the model **without** thoughts: they
run anywhere, and predict as the thinking model does when it does not think. The parameters of the
thoughts, the two thought marks and the talk head that mixes both predictions, are in
`{thought_file}`, which stock programs ignore and fqs_jax reads.
"""

PLAIN = """\
It answers without thoughts, as any other model: one forward pass a token.
"""


def text(name: str, config: ModelConfig, dtype: str, base: str, thinking: bool) -> str:
    """A short model card: the model's base, its size and the files of the folder."""
    return CARD.format(
        name=name,
        base=base,
        num_params=sum(math.prod(shape) for shape in tensor_shapes(config).values()),
        num_layers=config.num_layers,
        width=config.width,
        vocab_size=config.vocab_size,
        dtype=dtype,
        thoughts=THINKING.format(thought_file=THOUGHT) if thinking else PLAIN,
    )


def base_of(source: Path | None) -> str:
    """The name of the model in a source folder, for the card; never its path, which is private."""
    if source is None:
        return "not recorded"
    if not (source / "config.json").exists():
        return f"no model, only the tokenizer in the folder `{source.resolve().name}`"
    recorded = json.loads((source / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    known = isinstance(recorded, str) and recorded.count("/") == 1 and recorded[0] not in "./~"
    return f"`{recorded}`" if known else f"the folder `{source.resolve().name}`"
