"""Preparing a corpus as a TFDS dataset, from Python and from the command line."""

import json
import sys

import pytest

from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import Documents, open_sources
from fqs_jax.data.sources.tfds_writer import build_dataset
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import hf_folder, refusal, run, sentences

TEXTS = [f"{text} {i}" for i, text in enumerate(sentences(100))]


def read(out, split):
    [(source, _)] = open_sources(f"tfds:{out}:{split}", Options())
    return [source[i] for i in range(len(source))]


def test_documents_in_order_without_blanks(tmp_path, capfd):
    done = []
    sizes = build_dataset(Documents([*TEXTS, " "]), tmp_path / "out", "corpus", 0.0, done.append)
    assert sizes == {"train": 100} and read(tmp_path / "out", "train") == TEXTS
    assert done == list(range(1, 102))
    assert {path.suffix for path in (tmp_path / "out").glob("*.json")} == {".json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert capfd.readouterr() == ("", "")
    assert "tensorflow" not in sys.modules


def test_validation_is_set_aside_by_text(tmp_path):
    sizes = build_dataset(Documents(TEXTS + TEXTS[:20]), tmp_path / "out", "corpus", 0.2)
    train, validation = read(tmp_path / "out", "train"), read(tmp_path / "out", "validation")
    assert sizes == {"train": len(train), "validation": len(validation)}
    assert not set(train) & set(validation)  # the same text twice is on one side
    assert sorted(train + validation) == sorted(TEXTS + TEXTS[:20])
    assert 8 <= len(set(validation)) <= 35


class Failing(Documents):
    def __getitem__(self, index):
        if index == 50:
            raise UserError("document 50 is bad")
        return super().__getitem__(index)


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(UserError, match="^document 50 is bad$"):
        build_dataset(Failing(TEXTS), tmp_path / "out", "corpus", 0.0)
    for share, said in ((0.999999, "a split has no documents"), (1.0, "validation_share is 1.0")):
        with pytest.raises(UserError, match=said):
            build_dataset(Documents(TEXTS), tmp_path / "out", "corpus", share)
    with pytest.raises(UserError, match="the name is 'My Corpus'; use lower-case"):
        build_dataset(Documents(TEXTS), tmp_path / "out", "My Corpus", 0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_command_line(tmp_path):
    path, out = tmp_path / "text.jsonl", tmp_path / "Out-1"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    options = (f"--text={path}", f"--out={out}")
    done = run("prepare", *options, "--text_key=body", "--validation_share=0.2")
    said = done.stdout.splitlines()
    assert said[0].startswith("train: ") and said[1].startswith("validation: ")
    assert said[2] == f"read it with --text=tfds:{out}:train"
    assert len(read(out, "train")) + len(read(out, "validation")) == 100
    assert json.loads((out / "dataset_info.json").read_text())["name"] == "out_1"
    assert "exists already" in refusal("prepare", *options)
    assert "--out is missing" in refusal("prepare", options[0])
    assert "--part and --messages_key are for tokens" in refusal("prepare", *options, "--part=1/2")
    assert "--out is for documents" in refusal("prepare", *options, f"--tokenizer={tmp_path}")
    named = (options[0], f"--tokenizer={tmp_path}", "--name=corpus")
    assert "--name and --validation_share are for documents" in refusal("prepare", *named)
    assert "no key 'text'" in refusal("prepare", options[0], f"--out={tmp_path / 'other'}")
    weights = f"--text={path}#body@1,{path}#body@2"
    assert "leave them out here" in refusal("prepare", weights, f"--out={tmp_path / 'other'}")
    absent = ("--text=tfds:gsm8k:train", f"--tfds_dir={tmp_path}")
    for kind in (f"--out={tmp_path / 'other'}", f"--tokenizer={hf_folder(tmp_path / 'hf')}"):
        assert refusal("prepare", *absent, kind).endswith(
            "to download and prepare it, add --download"
        )
    assert not (tmp_path / "other").exists()
