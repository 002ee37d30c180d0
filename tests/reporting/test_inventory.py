"""What `fqs inspect` says of a working directory, and its exit code."""

import json
import shutil

import pytest
from absl import flags

from fqs_jax import inspect as program
from fqs_jax.reporting import inventory, inventory_table
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Stage 0 is finished, stage 1 is at step 4 of 6, and stage 2 was never saved."""
    root, config = tmp_path_factory.mktemp("trained") / "W", clock_config()
    save_stage(root, config, 0)
    save_stage(root, config, 1, step=4)
    lines = [
        {"event": "start", "step": 0, "parameters": 2345},
        {"step": 3, "nll_base": 9.0},
        {"step": 4, "nll_base": 2.5, "nll_mixed": None, "loss": 70000.0},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (root / "stage_1" / "metrics.jsonl").write_text(text + '{"step": 5, "nll')
    (root / "stage_2" / "teacher").mkdir(parents=True)
    return root


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "W")


def inspect(*words):
    """The exit code of the program on these words."""
    flags.FLAGS(
        ["inspect", *map(str, words), "--noverify" if "--verify" not in words else "--verify"]
    )
    try:
        program.main(["inspect", *(str(word) for word in words if not str(word).startswith("--"))])
    except SystemExit as end:
        return end.code
    return 0


def test_what_is_in_it(copy):
    (copy / "stage_1" / "checkpoints" / "damaged_2").mkdir()
    (copy / "out").mkdir()
    (copy / "out" / "config.json").write_text("{}")
    found = inventory.read(copy)
    base, think, begun = found.stages
    assert (base.name, base.objective, base.step, base.steps) == ("base", "next_token", 6, 6)
    assert (think.name, think.step, think.steps, think.parameters) == ("think-5-2", 4, 6, 2345)
    assert base.made_from == ("the initial model, random weights of seed 0", "on clock")
    assert think.made_from == ("from stage 0 at step 6", "on clock")
    assert think.metrics["step"] == 4 and think.set_aside == ("damaged_2",)
    assert (begun.number, begun.name, begun.checkpoints) == (2, "", ())
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert 0 < sum(one.bytes for one in base.checkpoints) < base.bytes < found.bytes
    assert found.exports == ("out",) and not list(found.damages())
    below = list(inventory_table.lines(found))
    assert len(below) == 2 and below[0].endswith(": out") and "damaged_2" in below[1]


def test_a_stage_with_settings_of_its_own_is_not_damaged(tmp_path):
    """Of its objective, and of its text."""
    settings = ("ntp.clip=False", "data.clock.direct=0.5", "data.seq_len=8")
    save_stage(tmp_path, clock_config({"stage_3.settings": settings}), 3)
    [stage] = inventory.read(tmp_path).stages
    assert (stage.name, stage.damage) == ("ntp", "")


def test_a_stage_that_changed_under_another_is_named(copy):
    save_stage(copy, clock_config(), 0, step=6)
    step = copy / "stage_0" / "checkpoints"
    (step / "6").rename(step / "5")
    assert inventory.read(copy).stages[1].made_from[0].endswith(", which has changed since")


def test_it_prints_a_table_or_json(copy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert inspect(copy) == 0
    printed = capsys.readouterr().out
    assert (
        "4 of 6" in printed
        and "step 4: nll_base 2.500" in printed
        and "2,345 parameters" in printed
    )
    assert inspect(copy, "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert [stage["step"] for stage in line["stages"]] == [6, 4, 0] and line["damage"] == []
    inspect(copy, "--nojson")


def test_damage_is_exit_code_1(copy, capsys):
    assert inspect(copy, "--verify") == 0
    assert capsys.readouterr().out.endswith("verified 2 checkpoints: all are whole\n")
    shutil.rmtree(copy / "stage_0" / "checkpoints" / "6" / "optimizer")
    assert inspect(copy) == 0  # which reads no checkpoint
    assert inspect(copy, "--verify") == 1
    printed = capsys.readouterr().out
    assert "(damaged)" in printed and f"{copy}/stage_0/checkpoints/6 is damaged: " in printed
    (copy / "stage_1" / "run.json").write_text("{")
    (copy / "source" / "origin.json").unlink()
    assert inspect(copy) == 1
    *_, first, second = capsys.readouterr().out.splitlines()
    assert "origin.json" in first and "stage_1/run.json is no record of stage 1" in second


def test_what_is_no_working_directory_is_refused(tmp_path):
    for folder, reason in ((tmp_path / "none", "no folder"), (tmp_path, "is no working directory")):
        with pytest.raises(UserError, match=reason):
            inspect(folder)
    with pytest.raises(UserError, match="two working directories"):
        inspect(tmp_path, tmp_path)
    with pytest.raises(UserError, match="--workdir is missing"):
        inspect()
