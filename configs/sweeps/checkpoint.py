"""Does a checkpoint answer better once it thinks? Benchmarks, with learning rates chosen on other items.

python -m fqs_jax.sweep --config=configs/sweeps/checkpoint.py --workdir=W --config.init_from=HF_DIR \
    --config.text=FILE --config.benchmark_folder=DIR --config.held_out=OTHER_FILE
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import benchmark, variant

# Longest published splits with answers. Small models answer by texts better than by letters.
BENCHMARKS = (
    benchmark("csqa", "csqa/dev_rand_split.jsonl", scoring="text"),
    benchmark("piqa", "piqa/valid.jsonl", scoring="text"),
    benchmark("siqa", "siqa/dev.jsonl", scoring="text"),
)
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SAME_FLOPS = (
    "stage_4.name=same-flops",
    "stage_4.same_steps_as=()",
    "stage_4.same_flops_as=(1,2,3)",
)


def get_config() -> ml_collections.ConfigDict:
    """Thirty-six cells. The thinking variant and each control choose a learning rate of their own."""
    c = ml_collections.ConfigDict()
    c.config = "configs/think_on_text.py"
    c.init_from = ""  # a Hugging Face folder
    c.text = ""  # to train on
    c.held_out = ""  # more of it, for the loss; may be left out
    c.benchmark_folder = ""
    c.benchmarks = BENCHMARKS
    c.validation_items = 300  # of each benchmark
    c.seeds = (0, 1, 2)
    c.variants = (
        variant("think", stages="1,2,3", bracket=rates(1, 2, 3)),
        variant("same-steps", stages="4", bracket=rates(4)),
        variant("same-flops", *SAME_FLOPS, stages="4", bracket=rates(4)),
    )
    return c


def rates(*stages: int) -> tuple[tuple[str, ...], ...]:
    """A bracket: each of RATES for all of these stages together."""
    return tuple(tuple(f"stage_{n}.learning_rate={rate}" for n in stages) for rate in RATES)
