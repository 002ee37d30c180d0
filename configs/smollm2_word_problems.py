"""Word problems in plain English: a pretrained model of 135M parameters thinks, its student does without.

python -m fqs_jax.launch --config=configs/smollm2_word_problems.py --init_from=HF_DIR --workdir=W --stage=all
python -m fqs_jax.evaluate --workdir=W --all_stages
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import common
from fqs_jax.curriculum import row

# The text of thoughts: answered questions, of which only the answers are predicted.
ANSWERS = (
    "data.stories.worked=0.0",
    "data.stories.direct=1.0",
    "data.learn=answers",
    "data.seq_len=36",
)
# The text of students: questions without answers.
QUESTIONS = (
    "data.stories.worked=0.0",
    "data.stories.direct=0.0",
    "data.stories.unanswered=1.0",
    "data.seq_len=36",
)
# The text of plain training: worked problems beside the few answers, which teach it more than those alone.
WORKED_AND_ANSWERED = ("data.stories.worked=0.5", "data.stories.direct=0.5")


def get_config() -> ml_collections.ConfigDict:
    """Stories of two changes with numbers up to ten: 860 problems, 172 of them held out.

    HF_DIR is SmolLM2-135M, or its Instruct model, in whose tokens rows and thoughts are measured; another
    model needs other lengths. The base learns from worked problems alone. The text after it answers a tenth
    of the training problems, always the same.

    Thoughts are as long as the work, two equations of 11 tokens in all, and their marks begin as the
    symbols around it, a warm start. A step thinks at one position of a row, where the answer begins:
    elsewhere nothing can be worked out, and the talk head learns to ignore all thoughts. The student reads
    questions without answers, and learns where the answer would begin. Every document tells its problem in
    other words: told in one way, problems are learned by heart. Plain training reads worked problems
    beside the few answers.

    `evaluate` shows two rows a model: held-out numbers, and the same problems in sentences that no
    document has (`new_wording`). The numbers of steps are the few that a CPU can do; multiply them on a GPU.
    About 65 minutes for stages 0 to 2 on one CPU core. Of the held-out problems thinking answered 0.98,
    0.94 and 0.90 (seeds 0 to 2), the base 0.08 to 0.09, the student 0.67, 0.70 and 0.63, and plain training
    with as many FLOPs 0.20, 0.16 and 0.26 (RESULTS.md, section 5).
    """
    c = common.for_checkpoint()
    common.drop_rows(c)
    c.batch_size = 8
    c.compute.dtype = "float32"
    c.compute.remat = "elementwise"
    c.compute.vocab_chunk = 0
    c.data.source = "stories"
    c.data.rows = "crop"
    c.data.seq_len = 49  # the longest document
    c.data.num_documents = 20_000
    c.data.stories.largest = 10
    c.data.stories.worked = 1.0
    c.data.stories.direct = 0.0
    c.data.stories.answered_share = 0.1
    c.data.stories.chatter = 0.0
    c.data.stories.validation_share = 0.05
    c.data.stories.test_share = 0.2
    c.optimizer.beta2 = 0.95
    c.optimizer.warmup_steps = 10
    c.optimizer.decay_steps = 0
    # Thoughts need no training: higher rates spoil them (RESULTS.md, section 5). The head begins at nothing.
    c.optimizer.lr_scale.talk_head = 2000.0
    c.thought.start_text = " :"  # with the space: the token that the documents have
    c.thought.end_text = " ="
    c.thought.embedding_scale = 1.0
    c.thought.mixing = "probability"
    c.thought.mixing_bias = 0.0
    c.thought.reset_marks_on_load = False
    c.thought.reset_talk_head_on_load = False
    c.thought.reinforce_temperature = 1.0
    c.thought.position_fraction = 0.02  # one position: where the answer begins
    # The base never answers at once. Unlearning that spoils its thoughts (RESULTS.md, section 5).
    c.quiet_star.base_weight = 0.0
    c.quiet_star.policy_weight = 1.0
    c.quiet_star.advantage = "leave_one_out"
    c.distill.teacher_thoughts = 1
    c.distill.weighting = "shift"
    c.distill.positions = "last"  # behind the question
    c.distill.top_k = 16
    c.log_every = 5
    c.checkpoint_every = 1000
    c.keep_checkpoints = 1  # of 1.6 GB
    plain: dict[str, Any] = {
        "start": 0,
        "control": True,
        "learning_rate": 3e-4,
        "settings": WORKED_AND_ANSWERED,
    }
    c.stage_0 = row("base", "next_token", learning_rate=3e-4, steps=150)
    c.stage_1 = row(
        "think-14-1",
        "quiet_star",
        start=0,
        n_ahead=14,
        n_ahead_talk=1,
        learning_rate=1e-6,
        steps=40,
        settings=ANSWERS,
    )
    c.stage_2 = row(
        "distilled",
        "distill",
        start=0,
        teacher=1,
        learning_rate=3e-4,
        steps=600,
        settings=QUESTIONS,
    )
    c.stage_3 = row("same-steps", "next_token", same_steps_as=(1, 2), **plain)
    c.stage_4 = row("same-flops", "next_token", same_flops_as=(1, 2), **plain)
    return c
