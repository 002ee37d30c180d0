"""Does the published recipe raise accuracy on SmolLM2-135M, or only the published metric?

python -m fqs_jax.sweep --config=configs/sweeps/smollm2_recipe.py --workdir=W --config.init_from=HF_DIR \
    --config.text=FILE --config.benchmark_folder=DIR --config.held_out=OTHER_FILE
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import benchmark, variant

FILES = {
    "csqa": "csqa_dev_rand_split.jsonl",
    "piqa": "piqa_valid.jsonl",
    "siqa": "siqa_dev.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
}
ITEMS = {"csqa": 400, "piqa": 160, "siqa": 160, "gsm8k": 160}


def get_config() -> ml_collections.ConfigDict:
    """12 cells. One of "recipe" takes 1.7 hours on a CPU core beside another, an hour of it to measure.

    The text is mathematical: the questions and solutions of GSM8K's training split, a line
    {"text": question + "\\n" + answer} each, but for the last hundred, which are held out.
    NTP's three learning rates are all reported, so nothing is chosen. "same-steps" and "same-flops" are plain
    training with as many steps, or as many FLOPs, as thinking and NTP together; "no-policy" trains thoughts
    by the likelihood alone, "random-tokens" puts random tokens between the marks.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/smollm2_recipe.py"
    c.init_from = ""  # a Hugging Face folder
    c.text = ""
    c.held_out = ""  # more of it, for the loss
    c.benchmark_folder = ""
    c.benchmarks = (
        *(benchmark(task, FILES[task], limit=ITEMS[task], thought_seeds=1) for task in FILES),
        benchmark("csqa", FILES["csqa"], scoring="text", limit=160, thought_seeds=1),
    )
    c.seeds = (0, 1, 2)
    no_policy = "quiet_star.policy_weight=0.0"
    c.variants = (
        variant("recipe", stages="1,2,4,5,6,7"),
        variant("same-flops", stages="8"),
        variant("no-policy", no_policy, stages="1,2"),
        variant("random-tokens", no_policy, "thought.tokens=random", stages="1,2"),
    )
    return c
