"""The README.md of an exported folder."""

from __future__ import annotations

import math
import re
from pathlib import Path

from fqs_jax.huggingface.tensors import THOUGHT, tensor_shapes
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import printable

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
    """A short model card: the model's base, its size and the files of the folder.

    Args:
      base: Markdown, in which names from outside went through `escaped` or `code`.
    """
    return CARD.format(
        name=escaped(name),
        base=base,
        num_params=sum(math.prod(shape) for shape in tensor_shapes(config).values()),
        num_layers=config.num_layers,
        width=config.width,
        vocab_size=config.vocab_size,
        dtype=dtype,
        thoughts=thoughts(thinking),
    )


def thoughts(thinking: bool) -> str:
    """The part of a card about thoughts."""
    return THINKING.format(thought_file=THOUGHT) if thinking else PLAIN


def base_of(source: Path | None) -> str:
    """The name of the model in a source folder, for the card; never its path, which is private."""
    if source is None:
        return "not recorded"
    folder = code(source.resolve().name)
    if not (source / "config.json").exists():
        return f"no model, only the tokenizer in the folder {folder}"
    recorded = inputs.read_json(source / "config.json").get("_name_or_path")
    if isinstance(recorded, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", recorded):
        return code(recorded)
    return f"the folder {folder}"


def escaped(text: str) -> str:
    """A name as Markdown that shows it as it is, on one line: no link, no HTML, no emphasis."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$])", r"\\\1", printable(text, 200))


def code(text: str) -> str:
    """A name as a code span of Markdown."""
    return f"`{printable(text, 200).replace('`', chr(39))}`"
