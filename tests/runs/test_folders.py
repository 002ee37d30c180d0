"""What counts as a stage and as a checkpoint, and records that are damaged."""

import json

import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.runs import folders, history, record, source
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage
from tests.tiny_states import save_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("trained") / "W", clock_config()
    for number in (0, 1):
        save_stage(root, config, number)
    return root


@pytest.fixture
def run_file(trained):
    """The run.json of stage 1, restored after the test."""
    path = trained / "stage_1" / "run.json"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def test_stray_folders_are_no_stages(trained, run_file):
    strays = (
        "stage_x",
        "stage_1 (copy)",
        "stage_1.old",
        "stage_1_backup",
        "stage_01",
        "stage_",
        "stage_-1",
    )
    for name in (*strays, "stage_\u0661"):  # an Arabic digit 1
        (trained / name / "checkpoints" / "6" / "params").mkdir(parents=True)
        (trained / name / "run.json").write_bytes(run_file.read_bytes())
    (trained / "stage_2").write_text("a file")
    assert [stage.number for stage in folders.existing_stages(trained)] == [0, 1]


def test_empty_and_strange_folders_are_no_checkpoints(tmp_path):
    folder = save_steps(tmp_path / "c", 3, 6)
    for name in ("999999", "007", "\u0669", "8.orbax-checkpoint-tmp", "-4", "1e3"):
        (folder / name).mkdir()
    (folder / "12").write_text("a file")
    (folder / "13").mkdir()
    (folder / "13" / ".DS_Store").write_text("")
    (folder / "014" / "params").mkdir(parents=True)
    assert folders.saved_steps(folder) == [6, 3]
    assert folders.latest_step(tmp_path / "none") is None


def change(path, **changes):
    run = json.loads(path.read_text())
    for name, value in changes.items():
        place = run
        *parts, last = name.split("__")
        for part in parts:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(run))


HARMS = {
    "no JSON": (lambda path: path.write_text('{"stage": {'), "is not valid JSON"),
    "empty": (lambda path: path.write_text(""), "is not valid JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\0\0"), "is not valid JSON"),
    "a list": (lambda path: path.write_text("[]"), "should hold a JSON object"),
    "no fields": (lambda path: path.write_text("{}"), "it has no object 'stage'"),
    "stage": (lambda path: change(path, stage=[1]), "it has no object 'stage'"),
    "config": (lambda path: change(path, config="x"), "it has no object 'config'"),
    "made_from": (lambda path: change(path, made_from=None), "it has no object 'made_from'"),
    "name": (lambda path: change(path, stage__name=3), "stage.name is 3; it should be a text"),
    "no name": (lambda path: change(path, stage__name=None), "stage has no field 'name'"),
    "field": (lambda path: change(path, stage__new=1), "stage has a field 'new', which is none"),
    "steps": (lambda path: change(path, stage__steps="6"), "stage.steps is '6'; it should be"),
    "number": (lambda path: change(path, stage__number=4), "stage.number is 4"),
    "thought": (lambda path: change(path, config__thought=None), "config.thought.rationales is"),
    "nan": (
        lambda path: change(path, config__thought__temperature=float("nan")),
        "config.thought.temperature is nan; set ",
    ),
    "type": (lambda path: change(path, config__batch_size="2"), "config.batch_size is '2'; set "),
    "section": (lambda path: change(path, config__data=3), "config.data"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_record_is_named_in_one_line(trained, run_file, name):
    harm, finding = HARMS[name]
    harm(run_file)
    with pytest.raises(UserError) as refused:
        folders.read_run(trained, 1)
    message = str(refused.value)
    assert message.startswith(f"{run_file} is no record of stage 1: ") and finding in message
    assert message.endswith(folders.REPAIR) and "\n" not in message and "\0" not in message


@pytest.mark.parametrize("name", ["no JSON", "no fields", "made_from"])
def test_a_damaged_record_is_named_where_it_is_compared(trained, run_file, name):
    harm, finding = HARMS[name]
    harm(run_file)
    for read in (record.origin_of, lambda root, number: record._read(run_file.parent)):
        with pytest.raises(UserError) as refused:
            read(trained, 1)
        assert finding in str(refused.value) and str(run_file) in str(refused.value)


def test_a_record_of_an_earlier_version_is_read(trained, run_file):
    change(run_file, config__quiet_star__mixed_scale=None, config__quiet_star__likelihood=None)
    stage, config = folders.read_run(trained, 1)
    model, _ = source.prepare(trained, clock_config())
    assert resolve.recipe(config, stage, model).objective.mixed_weight == 0.5


def test_a_record_that_was_removed_is_written_again(trained, run_file):
    before = run_file.read_text()
    run_file.unlink()
    config = clock_config()
    model, _ = source.prepare(trained, config)
    record.write(trained, config, resolve.find(resolve.recipes(config, model), "1").stage)
    assert run_file.read_text() == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"init_from": 3}', b"\xff", b"{" * 9999])
def test_a_damaged_origin_is_made_again_once_removed(trained, content):
    path = trained / "source" / "origin.json"
    before = path.read_bytes()
    path.write_bytes(content)
    for read in (source.origin_name, lambda root: source.prepare(root, clock_config())):
        with pytest.raises(UserError) as refused:
            read(trained)
        message = str(refused.value)
        assert (
            message.startswith(f"{path} does not name the initial model: ") and "\n" not in message
        )
        assert f"remove {path.parent}, and the next launch makes it again" in message
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    source.prepare(trained, clock_config())
    assert path.read_bytes() == before


def test_commands_that_are_no_text(tmp_path):
    path = tmp_path / "commands.txt"
    path.write_bytes(b"launch --text=caf\xe9.txt\nlaunch --text=\x1b[31mred")
    assert history.commands(tmp_path) == [
        "launch --text=caf\\udce9.txt",
        "launch --text=\\x1b[31mred",
    ]
    foreign = b"launch --text=caf\xe8.txt".decode(errors="surrogateescape")  # as sys.argv has it
    for command in (foreign, foreign, "launch\n--stage=1", "launch\n--stage=1"):
        history.record_command(tmp_path, command)
    assert path.read_bytes() == (
        b"launch --text=caf\xe9.txt\nlaunch --text=\x1b[31mred\nlaunch --text=caf\xe8.txt\n"
        b"launch\n--stage=1\n"
    )
