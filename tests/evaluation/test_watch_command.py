"""`evaluate --watch` as a program: exit codes, printed lines, refusals."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.data import tokenizer_training
from fqs_jax.evaluation import watch, watch_command
from fqs_jax.runs import loading
from fqs_jax.runtime import cli, sharding
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, hf_folder, refusal, run, save_stage, sentences


def write_lines(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Random models: a plain one, 0, and one that thinks, 1, on text; 2 had a mixture."""
    place = tmp_path_factory.mktemp("watch")
    text = write_lines(place / "text.jsonl", sentences(30))
    write_lines(place / "fresh.jsonl", sentences(12, 5))
    held_out = [text for text in sentences(160, 6) if text not in sentences(30)]
    write_lines(place / "held_out.jsonl", held_out)
    greek = ["".join(chr(0x3B1 + ord(c) % 24) for c in text) for text in sentences(12, 5)]
    write_lines(place / "elsewhere.jsonl", greek)
    write_lines(place / "few.jsonl", sentences(7))
    (place / "one.txt").write_text("\n".join(sentences(30)))
    (place / "utf16.jsonl").write_bytes((place / "fresh.jsonl").read_text().encode("utf-16"))
    hf_folder(place / "hf")
    changes = {"init_from": str(place / "hf"), "data.source": "text", "data.text": text}
    for number, changed in enumerate(
        [{}, {}, {"data.text": f"{text}@1,{place / 'fresh.jsonl'}@2"}]
    ):
        save_stage(place / "W", clock_config(changes | changed), number, seed=number)
    changes["data.text"] = str(place / "gone.jsonl")
    save_stage(place / "gone", clock_config(changes), 0)
    words = place / "words"
    tokenizer_training.train_sentencepiece([text[::-1] for text in sentences(200)], words, 300)
    loaded = loading.load(str(place / "hf"))
    huggingface.export(loaded.params["lm"], loaded.model, place / "other", words)
    return place


def options(place, fresh, **flags):
    named = {"teacher": f"{place}/W:1", "student": f"{place}/W:0"} | flags
    return ("--watch", *(f"--{name}={value}" for name, value in named.items()), str(place / fresh))


def in_process(place, monkeypatch, **changed):
    """Set flags for `main` in this process, since each program takes seconds to start."""
    values = {"teacher": "PLACE/W:1", "student": "PLACE/W:0", "reference": "", "documents": 200}
    values |= {"tolerance": 0.01, "loss_tolerance": 0.5, "batch_size": None, "seq_len": None}
    values |= {"seed": 0, "json": False, "download": False} | changed
    for name, value in values.items():
        values[name] = value.replace("PLACE", str(place)) if isinstance(value, str) else value
    given = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values))
    monkeypatch.setattr(watch_command, "flags", given)
    monkeypatch.setattr(cli, "mesh_from_flags", sharding.single_device)


def test_keep(place):
    done = run("evaluate", *options(place, "held_out.jsonl", documents=100))
    loss, then, gap, drift, rise, verdict = done.stdout.splitlines()
    assert loss.startswith("loss on 100 fresh documents (")
    assert then.startswith("on 30 documents of training time: student ")
    assert gap.startswith("gap ") and ", at training time " in gap
    assert drift.startswith("drift ") and drift.split()[1] != "+0.0000"  # other text
    assert rise.startswith("rise of the student's loss ")
    assert verdict.startswith("keep: the drift is not above 0.01, nor the rise above 0.5")


@pytest.mark.parametrize(
    "loss_tolerance, code, verdict",
    [
        (0.5, 3, "retrain: .*loss rose by more than 0.5.* alone: both models are foreign to this"),
        (1.5, 0, "keep: the drift is not above 0.01, nor the rise above 1.5$"),
        (
            1,
            0,
            "keep: .* nor the rise above 1; this is uncertain, add documents to narrow the inter",
        ),
    ],
)
def test_a_loss_that_rises_by_1(place, monkeypatch, capsys, loss_tolerance, code, verdict):
    """Made-up losses; test_watch.py has models that were trained."""
    tokens_D = np.arange(10, 30)
    nll_D = np.linspace(1.9, 2.1, 20) * tokens_D
    measured = iter(
        [watch.Losses(tokens_D, loss_D, loss_D) for loss_D in (nll_D + tokens_D, nll_D)]
    )
    monkeypatch.setattr(watch, "measure", lambda *_: next(measured))
    in_process(place, monkeypatch, loss_tolerance=loss_tolerance, text="PLACE/fresh.jsonl")
    assert watch_command.main() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("rise of the student's loss +1.0000 (95%: +0.9")
    assert re.match(verdict, lines[-1])


def test_retrain(place):
    fresh, reference = "elsewhere.jsonl", place / "fresh.jsonl"
    flags = options(place, fresh, reference=reference, documents=10)
    result = json.loads(run("evaluate", *flags, "--json", code=3).stdout)
    assert result["verdict"] == "retrain" and result["reason"] == "gap"
    assert result["drift_low"] > 0.01 == result["tolerance"]
    assert result["documents"] == result["documents_then"] == 10
    assert result["drift"] > 0.5
    assert result["drift"] == pytest.approx(result["gap"] - result["gap_then"])


def test_refusal(place):
    assert "--student is missing" in refusal("evaluate", *options(place, "fresh.jsonl", student=""))


@pytest.mark.parametrize(
    "fresh, flags, reason",
    [
        ("", {}, "--text is missing"),
        ("none.jsonl", {}, "no file matches .*none.jsonl"),
        ("utf16.jsonl", {}, "utf16.jsonl.* not UTF-8"),
        ("few.jsonl", {}, "fresh text has too few documents for an interval, 7"),
        ("one.txt", {}, "a .txt file is one document"),
        ("fresh.jsonl", {"reference": "PLACE/few.jsonl"}, "training-time text has too few .* 7"),
        ("fresh.jsonl", {"teacher": "PLACE/W:0"}, "--teacher=.*W:0 does not think"),
        ("fresh.jsonl", {"teacher": "PLACE/W"}, "add its stage, as in .*/W:3"),
        ("fresh.jsonl", {"teacher": "PLACE/W:9"}, "--teacher=.*there is no stage '9'; there are 0"),
        ("fresh.jsonl", {"teacher": "PLACE/no:1"}, "--teacher=.*there is no folder"),
        (
            "fresh.jsonl",
            {"student": "PLACE/hf"},
            "--reference is missing: .*hf is not recorded",
        ),
        (
            "fresh.jsonl",
            {"student": "PLACE/W:init"},
            "--reference is missing: .*W:init is not rec",
        ),
        ("fresh.jsonl", {"student": "PLACE/W:2"}, "weighted mixture.*give text like it with --ref"),
        ("fresh.jsonl", {"student": "PLACE/gone:0"}, "gone.jsonl.*give text like it with --ref"),
        (
            "fresh.jsonl",
            {"student": "PLACE/other", "reference": "PLACE/text.jsonl"},
            "different tokenizers; name models of one run",
        ),
        ("fresh.jsonl", {"tolerance": float("nan")}, "^--tolerance must be a finite .*, not nan"),
        ("fresh.jsonl", {"loss_tolerance": float("inf")}, "^--loss_tolerance must be .*, not inf"),
    ],
)
def test_reasons(place, monkeypatch, fresh, flags, reason):
    in_process(place, monkeypatch, text=f"{place}/{fresh}" if fresh else "", **flags)
    with pytest.raises(UserError, match=reason) as caught:
        watch_command.main()
    assert "\n" not in str(caught.value)


def test_names_of_models(place):
    (place / "a:b").mkdir(exist_ok=True)
    assert watch_command._split("W:think-8-2") == ("W", "think-8-2")
    assert watch_command._split(str(place)) == (str(place), None)
    assert watch_command._split(f"{place}/a:b") == (f"{place}/a:b", None)
    assert watch_command._split(f"{place}/a:b:3") == (f"{place}/a:b", "3")
    assert not Path("hf").is_dir() and watch_command._split("hf") == ("hf", None)
