"""The built-in default: a small model learns to think on clock arithmetic, from scratch.

python -m fqs_jax.launch --config=configs/tiny.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Most documents show the work of a problem, some give the answer at once.

    The base learns to show its work, and answers at once no better than by chance; a thought gives it
    room for the work. The marks begin as the symbols around shown work: a warm start. Mixing of
    probabilities that begins small, and an advantage of both signs, learn in fewer steps here than
    the published forms (RESULTS.md). About 4 minutes on 2 CPU cores; the last thinking stage answers
    about 0.8 of the held-out problems.
    """
    c = common.get_config()
    c.batch_size = 32
    c.model = ml_collections.ConfigDict(
        {
            "width": 64,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 16,
            "mlp_dim": 176,
            "max_seq_len": 128,
            "tied_embeddings": True,
        }
    )
    c.compute.dtype = "float32"
    c.compute.remat = "elementwise"
    c.compute.vocab_chunk = 0
    c.compute.position_chunk = 4
    c.data.source = "clock"
    c.data.rows = "crop"
    c.data.seq_len = 16
    c.data.clock.lengths = (3,)
    c.data.num_documents = 20_000
    c.optimizer.beta2 = 0.95
    c.optimizer.decay_steps = 0
    c.thought.start_text = ":"
    c.thought.end_text = "="
    c.thought.embedding_scale = 1.0
    c.thought.mixing = "probability"
    c.thought.mixing_bias = -2.0
    c.thought.reset_marks_on_load = False
    c.thought.reset_talk_head_on_load = False
    c.quiet_star.policy_weight = 1.0
    c.quiet_star.advantage = "leave_one_out"
    c.thought.reinforce_temperature = 1.0
    c.log_every = 10
    c.checkpoint_every = 200

    # Thoughts of 5, 4 and 3 tokens: three is the work of these problems, with less it is lost.
    think: dict[str, Any] = {"objective": "quiet_star", "n_ahead_talk": 2, "learning_rate": 1e-3}
    plain: dict[str, Any] = {"objective": "next_token", "start": 0, "learning_rate": 1e-3}
    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1000)
    c.stage_1 = row("think-8-2", start=0, n_ahead=8, steps=250, **think)
    c.stage_2 = row("think-7-2", start=1, n_ahead=7, steps=150, **think)
    c.stage_3 = row("think-6-2", start=2, n_ahead=6, steps=150, **think)
    c.stage_4 = row("ntp", "ntp", start=0, teacher=3, learning_rate=1e-4, steps=300)
    c.stage_5 = row("same-steps", control=True, same_steps_as=(1, 2, 3), **plain)
    c.stage_6 = row("same-flops", control=True, same_flops_as=(1, 2, 3), **plain)
    return c
