"""Every field of an experiment, with the published values as defaults; each config changes a few.

Override any field on the command line: --config.optimizer.clip_norm=0.5, --config.stage_2.steps=30.
Numbers marked (released) are set in the released Fast Quiet-STaR scripts.
"""

from __future__ import annotations

import ml_collections

from fqs_jax.curriculum import row


def for_checkpoint(**model: object) -> ml_collections.ConfigDict:
    """The published recipe for a checkpoint, which the user must pass.

    Args:
      model: the architecture, used only by plan, which needs no weights; training reads the
        checkpoint's own config.json.
    """
    c = get_config()
    c.requires_init_from = True
    c.model = ml_collections.ConfigDict(model)
    return c


def for_qwen3(**sizes: object) -> ml_collections.ConfigDict:
    """`for_checkpoint` of a dense Qwen3.

    Args:
      sizes: the fields in which its models differ.
    """
    return for_checkpoint(
        vocab_size=151936,
        num_kv_heads=8,
        head_dim=128,
        max_seq_len=40960,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm="head",
        **sizes,
    )


def for_gemma3(**sizes: object) -> ml_collections.ConfigDict:
    """`for_checkpoint` of a small Gemma 3.

    Args:
      sizes: the fields in which its models differ.
    """
    return for_checkpoint(
        vocab_size=262144,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        max_seq_len=32768,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm="head",
        norms="both",
        activation="gelu_tanh",
        scaled_embeddings=True,
        stored_norm_offset=1.0,
        tied_embeddings=True,
        sliding_window=512,
        layer_types=("sliding",) * 5 + ("full",),
        local_rope_theta=10000.0,
        **sizes,
    )


def built_in() -> ml_collections.ConfigDict:
    """The fields common to all built-in tasks: those of fqs_jax.data.problems.task.Task."""
    c = ml_collections.ConfigDict()
    c.worked = 0.7  # share of documents that show the work
    c.direct = 0.2  # share that answer at once
    c.chatter = 0.1  # share with noise instead of the work
    c.unanswered = 0.0  # share that end in "="
    c.true_after_chatter = True  # False: chatter ends in a random answer
    c.label_noise = 0.0  # share of the direct documents whose answer is drawn at random
    c.answered_share = 1.0  # of the training problems of each length: those of direct documents
    c.validation_share = 0.1  # of the problems of each length
    c.test_share = 0.2  # of the problems of each length; never trained on
    return c


def drop_rows(c: ml_collections.ConfigDict) -> None:
    """Remove all stages from a config, so that others can be added."""
    for name in [name for name in c if name.startswith("stage_")]:
        del c[name]


def with_distillation(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The published recipe with distillation instead of NTP as its last stage. Not published.

    A plain model learns the predictions of the last thinking stage, mostly where thoughts change them
    (docs/science.md). A tenth of the loss is the plain next-token loss. The teacher's 16 likeliest
    tokens take 128 bytes per position.
    """
    c.distill.weighting = "shift"
    c.distill.top_k = 16
    c.distill.label_weight = 0.1
    c.stage_4 = row("distilled", "distill", teacher=3, steps=300)
    return c


def get_config() -> ml_collections.ConfigDict:
    """The published recipe without a model: each config sets one, and may change the rows."""
    c = ml_collections.ConfigDict()

    c.seed = 0  # for initialisation, data order and sampled thoughts
    c.init_from = ""  # Hugging Face folder of the initial model; empty = random, see `model`
    c.requires_init_from = False  # refuse to start without it
    c.batch_size = 8  # sequences per optimiser step, each with all its rationales (released)

    c.microbatches = 1  # parts into which a step splits its batch, to save memory; same gradient

    # Devices along each axis of the mesh (fqs_jax/runtime/sharding.py); -1 = all remaining ones.
    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = 1  # copies of the parameters
    c.mesh.fsdp = -1  # shards parameters and optimizer state; rows are split over data x fsdp
    c.mesh.tensor = 1  # shards heads, feed-forward and vocabulary

    # Architecture if init_from is empty: fields of fqs_jax.model.config.ModelConfig.
    c.model = ml_collections.ConfigDict({})

    c.compute = ml_collections.ConfigDict()
    c.compute.dtype = "bfloat16"  # of activations
    # Type of stored parameters and Adam moments. The released runs keep bfloat16 without a master copy:
    # steps of 1e-6 are then lost on all but the smallest weights. In float32 all weights move.
    c.compute.param_dtype = "float32"
    # Recomputation in the backward pass: none | full | dots (all but projections) | elementwise (no
    # matrix product except attention's scores).
    c.compute.remat = "full"
    c.compute.vocab_chunk = 2048  # tokens whose logits exist at once; 0 = all, kept for backward
    # Text positions whose thoughts are scored at once, forward and backward; 0 = all. On one device a
    # small number (16) saves time and most of the memory; across devices each chunk gathers the
    # parameters again.
    c.compute.position_chunk = 0
    # Implementation of attention: auto (splash on TPUs, else xla) | xla | splash (TPU) | cudnn (GPU).
    c.compute.attention = "auto"

    c.data = ml_collections.ConfigDict()
    # text, or a built-in task (docs/data.md):
    # clock | chain | parity | multiplication | word_problems | stories
    c.data.source = "text"
    # Files, globs, saved datasets, tfds:NAME, hub:OWNER/NAME; comma-separated, each with an optional
    # #KEY and @WEIGHT (docs/data.md).
    c.data.text = ""
    c.data.text_key = "text"  # the field, column or feature with the text
    # The field with conversations, lists of messages, of .jsonl or .array_record files; empty = documents
    # are text. They are written by the model's chat template, and only the assistant's part is learned.
    c.data.messages_key = ""
    c.data.seq_len = 256  # tokens per row (released); a stage may have its own, in its settings
    # crop: one random piece per document and epoch, padded (released); pack: documents end to end.
    c.data.rows = "crop"
    c.data.attend_across_documents = False  # in packed rows; True = one stream, as in GPT-2
    c.data.workers = 0  # processes that read ahead; 0 = threads
    # For the tokens of large texts; may be in a bucket (gs://); empty = ~/.cache/fqs_jax.
    c.data.cache_dir = ""
    c.data.tfds_dir = ""  # folder of prepared TFDS datasets; empty = TFDS's own folder
    c.data.download = False  # whether tfds: and hub: may download missing data
    c.data.tokenizer_pieces = 0  # vocabulary of a tokenizer trained on `text`; 0 with init_from
    # Of a built-in task: all | answers, only what follows the question is predicted.
    c.data.learn = "all"
    c.data.num_documents = 0  # documents generated by a built-in task
    c.data.clock = built_in()  # fields of fqs_jax.data.problems.clock.Clock
    c.data.clock.modulus = 7  # hours of the clock
    c.data.clock.operations = ("+1", "+3", "*2", "*3", "-2")  # drawn from these
    c.data.clock.lengths = (2, 3)  # operations in a problem
    c.data.chain = built_in()  # fields of fqs_jax.data.problems.chain.Chain
    c.data.chain.size = 7  # number of symbols
    c.data.chain.functions = 5  # tables
    c.data.chain.permutations = True  # False: random functions
    c.data.chain.lengths = (2, 3)  # look-ups in a problem
    c.data.parity = built_in()
    c.data.parity.lengths = (6, 8)  # bits
    c.data.multiplication = built_in()
    c.data.multiplication.lengths = (2,)  # digits of both factors
    c.data.word_problems = built_in()
    c.data.word_problems.lengths = (2, 3, 4)  # steps in a problem
    c.data.stories = built_in()  # fields of fqs_jax.data.problems.stories.Stories
    c.data.stories.largest = 20  # the largest number in a story
    c.data.stories.work = "equations"  # equations | values: the number after each change alone
    c.data.stories.lengths = (2,)  # changes in a story

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.beta1 = 0.9  # of AdamW
    c.optimizer.beta2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.001  # (released)
    c.optimizer.warmup_steps = 20  # (released)
    c.optimizer.decay_steps = 100_000  # linear decay to 0 there (released); 0 = at the last step
    c.optimizer.clip_norm = 1.0  # global norm of NLL and policy gradients together (released)
    c.optimizer.lr_scale = ml_collections.ConfigDict()  # factors on the stage's learning rate
    c.optimizer.lr_scale.lm = 1.0  # of the decoder, or its adapters
    c.optimizer.lr_scale.talk_head = 1.0  # of the network that weighs a thought
    c.optimizer.lr_scale.marks = 1.0  # stored marks are already 1/embedding_scale as large

    # Low-rank adapters beside a frozen decoder (LoRA, arXiv 2106.09685). Thoughts are trained as always.
    c.lora = ml_collections.ConfigDict()
    c.lora.rank = 0  # 0 = off: the whole decoder is trained (released)
    c.lora.alpha = 16.0  # the adapters' product counts alpha / rank (QLoRA, arXiv 2305.14314)
    # Of q, k, v, o, gate, up, down; all of them, as in QLoRA. The LoRA paper's own choice is q,v.
    c.lora.targets = "q,k,v,o,gate,up,down"

    c.thought = ml_collections.ConfigDict()
    c.thought.rationales = 2  # thoughts sampled at every position (released)
    # sampled (released) | random | pause: one learned embedding | latent: K hidden states, each the
    # input of the next (docs/fidelity.md). All but the first need quiet_star.policy_weight=0, and latent
    # also rationales=1.
    c.thought.tokens = "sampled"
    c.thought.mixing = "linear"  # linear (released) | sigmoid | probability
    c.thought.mixing_bias = 0.0  # added before the sigmoid; sigmoid and probability only
    c.thought.embedding_scale = 100.0  # stored marks are multiplied by this (released)
    c.thought.temperature = 1.0  # for sampling in training (released)
    c.thought.eval_temperature = 1.0  # at evaluation; 0 = greedy, as in the paper (released: 1)
    c.thought.reinforce_temperature = 3.0  # for scoring sampled tokens (released)
    # A training step thinks at this share of a row's positions, chosen again each step (published: 1).
    # Below 1 the loss is an unbiased estimate of the full one, at a fraction of the cost.
    c.thought.position_fraction = 1.0
    c.thought.positions = "uniform"  # uniform | high_entropy: more often where the base is unsure
    c.thought.masked_ids = ()  # vocabulary ids never drawn in a thought
    c.thought.start_text = "---"  # initial marks: the first token of each text (released)
    c.thought.end_text = "---"
    c.thought.reset_marks_on_load = True  # renew the marks at the start of a stage (released)
    c.thought.reset_talk_head_on_load = True  # and the talk head's last layer (released)
    # The released evaluation also renews the marks, and so loses what they learned; False keeps them.
    c.thought.reset_marks_at_eval = False

    c.quiet_star = ml_collections.ConfigDict()
    c.quiet_star.base_weight = 0.5  # share of the plain next-token loss (released)
    c.quiet_star.mixed_scale = 1.0  # factor on the rest, the mixed prediction's loss (released: 1)
    # each (released) | average: of the mean probability over a position's rationales (JEPO).
    c.quiet_star.likelihood = "each"
    c.quiet_star.policy_weight = 1e6  # weight of the REINFORCE loss (released)
    # clipped (released) | leave_one_out (RLP) | bound: what a thought adds to the average (JEPO).
    c.quiet_star.advantage = "clipped"
    # mixed (released) | post_thought: the thought's prediction alone | correct: 1 where the true token
    # is the mixed prediction's likeliest (RPT).
    c.quiet_star.reward = "mixed"
    c.quiet_star.post_thought_weight = 0.0  # weight of the loss of that prediction (released: none)

    c.ntp = ml_collections.ConfigDict()
    c.ntp.action = "sampled"  # sampled (released) | expected | label
    c.ntp.temperature = 3.0  # (released)
    c.ntp.policy_weight = 1e6  # (released)
    c.ntp.clip = True  # rewards below 0 count as 0 (released)

    # Distillation: a plain model learns the prediction that its teacher makes with thoughts.
    c.distill = ml_collections.ConfigDict()
    # forward_kl: KL(teacher || student) | reverse_kl: KL(student || teacher) | policy: reverse_kl by
    # REINFORCE | hinge: only catch up with the teacher on the true next token.
    c.distill.form = "forward_kl"
    c.distill.label_weight = 0.0  # share of the plain next-token loss; the rest is distillation
    # all | shift: positions are weighted by how far the teacher's thoughts move its prediction.
    c.distill.weighting = "all"
    # all | last: the student learns at every position; or, with data.rows=crop, only at the last of each
    # row, where the answer to a question without one would begin. The teacher thinks there alone too, at a
    # fraction of the cost.
    c.distill.positions = "all"
    c.distill.teacher_thoughts = 4  # the teacher's prediction is the average over these
    # Number of the teacher's likeliest tokens stored per position, 8 bytes each; all other tokens are
    # merged into one outcome. 0 = the whole vocabulary.
    c.distill.top_k = 0
    c.distill.group = 4  # tokens drawn per position, at least 2 (policy)

    # The loss on text that is not trained on, and the best checkpoint by it (docs/training_metrics.md).
    c.held_out = ml_collections.ConfigDict()
    c.held_out.every = 0  # steps between two measurements, and once at the end; 0 = never
    # As data.text. A built-in task takes its validation problems instead: leave it empty.
    c.held_out.text = ""
    c.held_out.rows = 64  # rows of seq_len tokens, rounded up to whole batches
    c.held_out.keep_best = True  # save the step with the lowest loss so far, and keep it

    c.log_every = 1  # steps between rows of metrics.jsonl
    c.checkpoint_every = 10  # steps (released)
    c.checkpoint_minutes = 0.0  # also whenever the last one is older than this; 0 = by steps alone
    c.keep_checkpoints = 2  # number of newest ones kept
    c.max_bad_steps = 10  # consecutive steps with NaN or inf gradients before giving up

    # The curriculum (released scripts). The released NTP run starts from the initial model with 12/4 as
    # its teacher. In summaries of the paper, both its start and its teacher are 8/4: set
    # stage_4.start=3 and stage_4.teacher=3 for that.
    c.stage_1 = row(
        "think-16-8", "quiet_star", n_ahead=16, n_ahead_talk=8, learning_rate=2e-6, steps=150
    )
    c.stage_2 = row("think-12-4", "quiet_star", start=1, n_ahead=12, n_ahead_talk=4, steps=150)
    c.stage_3 = row("think-8-4", "quiet_star", start=2, n_ahead=8, n_ahead_talk=4, steps=150)
    c.stage_4 = row("ntp", "ntp", teacher=2, steps=300)
    return c
