"""The built-in default: a small model learns to think on clock arithmetic, from scratch.

python -m fqs_jax.launch --config=configs/tiny.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import common
from fqs_jax.curriculum import row

# The text after the base: questions. Few are answered at once, some are worked out.
QUESTIONS = ("data.clock.worked=0.1", "data.clock.direct=0.02", "data.clock.unanswered=0.88")


def get_config() -> ml_collections.ConfigDict:
    """A clock of 19 hours and two additions: 684 problems, 137 of them held out.

    The base learns from worked problems alone: it can show its work, but not answer without it. The text
    of the later stages is questions. Most have no answer, one in ten is worked out, and one in fifty is
    answered at once; those few answers are to a tenth of the training problems, always the same. A
    thought gives the model room for the work. The marks are initialised from the symbols around shown
    work, a warm start, after which thoughts need no training here (RESULTS.md). Then a plain student
    learns the predictions of the thinking model, mostly where thoughts move them
    (objectives/distillation.py). Stage 3 is the published NTP objective, for comparison: it teaches
    nothing here.

    Thoughts are as long as the work from the start. With so few answers longer ones never become
    useful, so there is no curriculum here (`configs/shorten.py` has one). Mixing of probabilities that
    begins small, and an advantage of both signs, learn in fewer steps than the published forms
    (docs/science.md). The student and its plain controls have the best of several learning rates,
    chosen with other seeds (`configs/sweeps/learning_rates.py`), NTP the published one. About 3 minutes
    on 2 CPU cores.
    """
    c = without_rows()
    scarce_answers(c)
    c.data.clock.worked = 1.0
    c.data.clock.direct = 0.0
    c.data.clock.answered_share = 0.1
    taught: dict[str, Any] = {"start": 0, "teacher": 1, "settings": QUESTIONS}
    plain: dict[str, Any] = {"start": 0, "control": True, "settings": QUESTIONS}
    think: dict[str, Any] = {"n_ahead": 5, "n_ahead_talk": 2, "settings": QUESTIONS}
    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1500)
    c.stage_1 = row("think-5-2", "quiet_star", start=0, learning_rate=1e-3, steps=200, **think)
    c.stage_2 = row("distilled", "distill", learning_rate=3e-3, steps=2000, **taught)
    c.stage_3 = row("ntp", "ntp", control=True, learning_rate=1e-6, steps=300, **taught)
    c.stage_4 = row("same-steps", "next_token", learning_rate=1e-3, same_steps_as=(1, 2), **plain)
    c.stage_5 = row("same-flops", "next_token", learning_rate=3e-4, same_flops_as=(1, 2), **plain)
    return c


def scarce_answers(c: ml_collections.ConfigDict) -> None:
    """Set the task and the base's text, in which few problems are answered at once."""
    c.data.clock.modulus = 19
    c.data.clock.operations = ("+1", "+2", "+3", "+4", "+5", "+6")
    c.data.clock.lengths = (2,)
    c.data.clock.worked = 0.98
    c.data.clock.direct = 0.02
    c.data.clock.chatter = 0.0
    c.data.seq_len = 12
    c.distill.teacher_thoughts = 1  # rows are repeated, each time with another thought
    c.distill.weighting = "shift"
    c.checkpoint_every = 1000


def without_rows() -> ml_collections.ConfigDict:
    """The tiny model without stages, on clock arithmetic of three operations modulo 7."""
    c = common.get_config()
    common.drop_rows(c)
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
    return c
