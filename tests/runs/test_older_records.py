"""Working directories that earlier versions began: their records lack fields that exist now."""

import json

import pytest
from flax.traverse_util import flatten_dict

from configs import common
from fqs_jax.curriculum import resolve
from fqs_jax.runs import folders, older_records, record, source
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage

# The fields of the first records that still resume, by section.
FIRST = {
    "": "batch_size init_from microbatches requires_init_from seed",
    "compute": "attention dtype param_dtype position_chunk remat vocab_chunk",
    "data": "attend_across_documents cache_dir download num_documents rows seq_len source text text_key "
    "tfds_dir tokenizer_pieces workers",
    "distill": "form group label_weight teacher_thoughts top_k weighting",
    "mesh": "data fsdp tensor",
    "ntp": "action clip policy_weight temperature",
    "optimizer": "beta1 beta2 clip_norm decay_steps eps warmup_steps weight_decay",
    "optimizer.lr_scale": "lm marks talk_head",
    "quiet_star": "advantage base_weight policy_weight post_thought_weight reward",
    "thought": "embedding_scale end_text eval_temperature masked_ids mixing mixing_bias position_fraction "
    "positions rationales reinforce_temperature reset_marks_at_eval reset_marks_on_load "
    "reset_talk_head_on_load start_text temperature tokens",
}
TASKS = ("clock", "chain", "parity", "multiplication", "word_problems")


def without_later_fields(run):
    """The record as the first version would have written it."""
    known = {
        f"{section}.{field}".strip(".") for section in FIRST for field in FIRST[section].split()
    }
    flat = flatten_dict(run["config"], sep=".", keep_empty_nodes=True)
    kept = {}
    for name, value in flat.items():
        of_task = name.startswith(tuple(f"data.{task}." for task in TASKS))
        if name in older_records.LATER or not (
            name in known or name.startswith("model") or of_task
        ):
            continue
        *parents, field = name.split(".")
        place = kept
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = value
    stage = {key: value for key, value in run["stage"].items() if key != "rows_of"}
    return run | {"config": kept, "stage": stage}


@pytest.fixture
def old(tmp_path):
    """A working directory with a finished and an unfinished stage, as the first version wrote it."""
    config = clock_config()
    for number, step in ((0, 0), (1, 3)):
        save_stage(tmp_path, config, number, step=step)
        path = folders.stage_folder(tmp_path, number) / "run.json"
        run = without_later_fields(json.loads(path.read_text()))
        if number == 1:
            run["made_from"] = {"0": record.origin_of(tmp_path, 0)}
        path.write_text(json.dumps(run))
    path = folders.source_folder(tmp_path) / "origin.json"
    origin = json.loads(path.read_text())
    del origin["data"]["clock"]["answered_share"]
    path.write_text(json.dumps(origin))
    return tmp_path


def write(root, number, **changes):
    config = clock_config(changes)
    model, _ = source.prepare(root, config)
    record.write(root, config, resolve.find(resolve.recipes(config, model), str(number)).stage)


def test_runs_begun_before_fields_existed_resume_and_get_new_stages(old):
    path = folders.stage_folder(old, 1) / "run.json"
    assert "likelihood" not in path.read_text() and "stories" not in path.read_text()
    for number in (0, 1, 2):
        write(old, number)
    stage, config = folders.read_run(old, 0)
    assert (stage.rows_of, config.quiet_star.likelihood, config.max_bad_steps) == (None, "each", 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quiet_star.likelihood", "average"),
        ("data.learn", "answers"),
        ("optimizer.eps", 1e-6),
        ("data.clock.answered_share", 0.5),
    ],
)
def test_another_value_of_a_field_is_still_refused(old, field, value):
    with pytest.raises(UserError, match=rf"was begun with (config\.)?{field}=.*now it is"):
        write(old, 1, **{field: value})


def test_every_field_is_of_the_first_records_or_has_a_value_for_them():
    """Whoever adds a field to a config says in older_records.LATER how things were without it."""
    first = {
        f"{section}.{field}".strip(".") for section in FIRST for field in FIRST[section].split()
    }
    for name, value in flatten_dict(common.get_config().to_dict(), sep=".").items():
        if (
            not name.startswith(("stage_", *(f"data.{task}." for task in TASKS)))
            and name not in first
        ):
            assert name in older_records.LATER and older_records.LATER[name] == value, name
