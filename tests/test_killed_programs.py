"""Programs that are killed just before their result gets its name: nothing is lost, nothing is left over."""

import json
import shutil

import pytest

from benchmarks.kill_commands import PROGRAMS, contents
from tests import programs
from tests.programs import Moment, Orders
from tests.tiny_runs import clock_config, run, save_stage

pytestmark = pytest.mark.slow

# The last file or folder that each program names.
RESULTS = {
    "evaluate": "W/evaluation.json",
    "report": "W/report.html",
    "convert": "out",
    "prepare": "out",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A working directory with an evaluation and a report, and a text."""
    place = tmp_path_factory.mktemp("whole")
    for number in (0, 1, 2, 3):
        save_stage(place / "W", clock_config(), number, seed=number)
    texts = [{"text": f"This is document {number}."} for number in range(50)]
    (place / "W" / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    run("evaluate", f"--workdir={place / 'W'}", "--all_stages")
    run("report", f"--workdir={place / 'W'}")
    return place


@pytest.mark.exhaustive
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_killed_program_leaves_what_was_there_and_runs_again(program, whole, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(whole, place)
    before = contents(place)
    result = RESULTS[program.name]
    arguments = program.command(place)[3:]
    moment = Moment("os:replace", argument=f"place/{result}$")
    orders = Orders(moment, program=program.name)
    [(code, said)] = programs.finish(programs.start(orders, *arguments))
    assert code == 137, said
    after = contents(place)
    assert after.keys() > before.keys()  # what it was about to name
    assert {name: after[name] for name in before} == before
    assert not (place / "out").exists()

    run(program.name, *arguments)
    names = {name for name in contents(place) if not name.startswith("out/")}
    assert names == before.keys() and (place / result).exists()
