"""`make demo` in small: every row of configs/tiny.py, a few steps each, the table, and the report's path."""

import pytest

from configs import tiny
from fqs_jax.curriculum import resolve
from fqs_jax.evaluation import comparison_file
from fqs_jax.runs import folders, source
from fqs_jax.runs.metrics_file import read_rows
from tests.conftest import REPO
from tests.tiny_runs import run

STEPS = 3
SHORT = ("--config.batch_size=4", "--config.data.num_documents=300", "--config.log_every=1")


@pytest.mark.slow
def test_demo(tmp_path):
    root = tmp_path / "W"
    options = ("--config=configs/tiny.py", "--stage=all", f"--workdir={root}", *SHORT)
    done = run("launch", *options, f"--max_steps={STEPS}")
    assert done.stdout.startswith("Done: stage 0 (base), ")
    config = tiny.get_config()
    model = source.read_model(folders.source_folder(root), config)
    stages = [recipe.stage for recipe in resolve.recipes(config, model)]
    for stage in stages:
        rows = read_rows(root / f"stage_{stage.number}" / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows[-1]["skipped_steps"] == 0

    options = (f"--workdir={root}", "--all_stages", "--thought_seeds=2")
    printed = run("evaluate", *options).stdout
    # The numbers that were just printed; the report does not make them again.
    saved = comparison_file.read(root)
    table = saved.rows
    names = [row["name"].split(" at ")[0] for row in table]
    assert names == ["base", *(stage.name for stage in stages)]  # the second one is scaled
    assert "temperature" in table[1]["name"]
    for row in table:
        # Answers are one of seven, all about as likely before any training to speak of.
        assert 0 <= row["accuracy"] <= 0.5 and 1.5 < row["nll"] < 3 and row["ms_per_token"] > 0

    assert all(f"│ {name}" in printed for name in names) and "accuracy" in printed

    assert run("report", f"--workdir={root}").stdout == f"{root / 'report.html'}\n"
    page = (root / "report.html").read_text()
    assert f"--config=configs/tiny.py --workdir={root} --max_steps={STEPS}" in page
    assert all(f"{row['nll']:.3f}" in page for row in saved.rows)
    assert all(f"<h3>{stage}</h3>" in page for stage in stages)


def test_demo_ends_with_the_path_of_the_report():
    recipe = (REPO / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0].splitlines()
    assert recipe[-1].endswith("-m fqs_jax.report --workdir=$(WORKDIR)")
