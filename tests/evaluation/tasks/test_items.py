"""Benchmark files: prompts exactly as published, every layout, and one line for what is wrong."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from fqs_jax.data.sources.options import Options
from fqs_jax.evaluation.tasks import choices, commonsense_qa, gsm8k, items, piqa, social_iqa
from fqs_jax.evaluation.tasks.items import Cloze, Item
from fqs_jax.runtime.errors import UserError
from tests import benchmark_files
from tests.benchmark_files import write_lines

SIQA = social_iqa.task()
CLOZE = {"csqa": commonsense_qa.CLOZE, "piqa": piqa.CLOZE, "siqa": social_iqa.CLOZE}
TASKS = {"csqa": commonsense_qa.TASK, "piqa": piqa.TASK, "siqa": SIQA, "gsm8k": gsm8k.TASK}


@pytest.fixture
def files(tmp_path):
    return benchmark_files.write_all(tmp_path)


def read(task, source, *arguments, **options):
    return items.read(task, str(source), *arguments, **options)


def error_of(task, source, *arguments):
    with pytest.raises(UserError) as caught:
        read(task, source, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_commonsense_qa(files):
    first, second, _ = read(commonsense_qa.TASK, files["csqa"])
    letters = (" A", " B", " C", " D", " E")
    prompt = "Q: Where is the cat?\n(A) mat\n(B) tree\n(C) hat\n(D) sea\n(E) sky\nA:"
    assert first == Item(prompt, " A", letters, "letter")
    assert second.answer == " E"


def test_piqa(files):
    first, second = read(piqa.TASK, files["piqa"])
    prompt = "Q: find a hat\n(A) look at the mat \n(B) ask nobody\nA:"  # texts as they are
    assert first == Item(prompt, " B", (" A", " B"), "letter")
    assert second.answer == " A"


def test_social_iqa_joins_without_a_space_unless_asked(files):
    [item] = read(SIQA, files["siqa"])
    prompt = "Q: Tom saw a dog.What did Tom do?\n(A) ran\n(B) sat\n(C) saw\nA:"
    assert item == Item(prompt, " C", (" A", " B", " C"), "letter")
    [spaced] = read(social_iqa.task(" "), files["siqa"])
    assert spaced.prompt == prompt.replace("dog.What", "dog. What")


def test_prompts_for_texts_of_options(files):
    found = {name: read(task, files[name]) for name, task in CLOZE.items()}
    texts = ("mat", "tree", "hat", "sea", "sky")
    assert found["csqa"][0] == Cloze("Question: Where is the cat?\nAnswer:", texts, 0)
    solutions = ("look at the mat ", "ask nobody")  # texts as they are
    assert found["piqa"][0] == Cloze("Question: find a hat\nAnswer:", solutions, 1)
    prompt = "Q: Tom saw a dog. What did Tom do?\nA:"
    assert found["siqa"] == [Cloze(prompt, ("ran", "sat", "saw"), 2)]


def test_the_right_one_of_two_options_that_are_alike(tmp_path):
    """As in 24 items of CommonsenseQA's dev split."""
    path = write_lines(tmp_path / "a.jsonl", [benchmark_files.csqa("q", ["x", "y", "x"], "C")])
    assert read(commonsense_qa.CLOZE, path)[0].right == 2


def test_an_option_without_text_has_no_likelihood(tmp_path):
    (tmp_path / "bad-labels.lst").write_text("1\n1\n")
    for name, records in [
        ("csqa", [benchmark_files.CSQA[0], benchmark_files.csqa("q", ["x", " "], "A")]),
        ("piqa", [benchmark_files.PIQA[0], benchmark_files.PIQA[0] | {"sol2": ""}]),
        ("siqa", [benchmark_files.SIQA[0], benchmark_files.SIQA[0] | {"answerB": "\n"}]),
    ]:
        path = write_lines(tmp_path / "bad.jsonl", records)
        assert "bad.jsonl:2: option 2 has no text" in error_of(CLOZE[name], path)
        assert read(TASKS[name], path)  # its letter has one


def test_gsm8k(files):
    first, second, _ = read(gsm8k.TASK, files["gsm8k"])
    assert first == Item("Q: Tom has 9 hats and 9 more. How many?\nA:", " 18", (), "number")
    assert gsm8k.question(first) == "Tom has 9 hats and 9 more. How many?"
    assert second.answer == " -1,203" and gsm8k.number(second) == -1203


def test_choices(tmp_path):
    lines = [
        {"prompt": "a", "choices": [" b", " c"], "answer": " c"},
        {"prompt": "a", "choices": [" b", " c"], "answer": 0},
    ]
    found = read(choices.TASK, write_lines(tmp_path / "a.jsonl", lines))
    assert found == [Item("a", answer, (" b", " c"), "text") for answer in (" c", " b")]


def test_limit_and_labels_file(files, tmp_path):
    assert len(read(gsm8k.TASK, files["gsm8k"], limit=2)) == 2
    (tmp_path / "other.lst").write_text("0\n0\n")
    assert read(piqa.TASK, files["piqa"], str(tmp_path / "other.lst"))[0].answer == " A"


@pytest.mark.parametrize(
    "name, file, count",
    [
        ("csqa", "csqa_dev_rand_split", 1221),
        ("piqa", "piqa_valid", 1838),
        ("siqa", "siqa_dev", 1954),
        ("gsm8k", "gsm8k_test", 1319),
        ("gsm8k", "gsm8k_train", 7473),
    ],
)
def test_real_files(shared, name, file, count):
    path = shared / "real" / "benchmarks" / f"{file}.jsonl"
    assert len(read(TASKS[name], path)) == count == len(path.read_text().strip().split("\n"))


def test_hub_layouts(tmp_path):
    """Parquet files like those of the hub: CommonsenseQA in columns, labels as numbers or strings."""

    def parquet(name, records):
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path

    columns = {"label": list("AB"), "text": ["x", "y"]}
    [item] = read(
        commonsense_qa.TASK,
        parquet("c", [{"question": "q", "choices": columns, "answerKey": "B"}]),
    )
    assert item == Item("Q: q\n(A) x\n(B) y\nA:", " B", (" A", " B"), "letter")
    labelled = [record | {"label": 1} for record in benchmark_files.PIQA]
    assert [i.answer for i in read(piqa.TASK, parquet("p", labelled))] == [" B", " B"]
    labelled = [record | {"label": "2"} for record in benchmark_files.SIQA]
    assert read(SIQA, parquet("s", labelled))[0].answer == " B"
    unlabelled = [record | {"label": -1} for record in benchmark_files.PIQA]
    assert "row 0: the label is '-1'; it must be one of 0, 1" in error_of(
        piqa.TASK, parquet("u", unlabelled)
    )


class TinyPiqa(tfds.core.GeneratorBasedBuilder):
    """Two items with the features of TFDS's own PIQA."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, label = tfds.features.Text(), tfds.features.ClassLabel(num_classes=2)
        features = {"goal": text, "sol1": text, "sol2": text, "label": label}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for i, record in enumerate(benchmark_files.PIQA):
            yield i, record | {"label": 1 - i}


def test_tfds(tmp_path, files):
    TinyPiqa(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = read(piqa.TASK, f"tfds:{tmp_path / 'tiny_piqa'}:validation")
    assert found == read(piqa.TASK, files["piqa"])


def test_a_split_must_be_named():
    for name in ("tfds:gsm8k", "hub:openai/gsm8k"):
        assert "name the split too" in error_of(gsm8k.TASK, name)


def test_what_is_not_here_says_how_to_fetch_it(tmp_path):
    with pytest.raises(UserError, match="add --download"):
        read(
            gsm8k.TASK,
            "tfds:gsm8k:test",
            options=Options(tfds_dir=str(tmp_path), download_flag="--download"),
        )


def test_malformed_files(tmp_path):
    def with_line(task, line):
        text = line if isinstance(line, str) else json.dumps(line)
        (tmp_path / "bad.jsonl").write_text(f"{text}\n")
        return error_of(task, tmp_path / "bad.jsonl")

    csqa, good = commonsense_qa.TASK, benchmark_files.CSQA[0]
    assert "none.jsonl: No such file" in error_of(csqa, tmp_path / "none.jsonl")
    assert "has no records" in with_line(csqa, "")
    assert "bad.jsonl:1: not JSON" in with_line(csqa, "{")
    assert "bad.jsonl:1: each line must hold an object" in with_line(csqa, "[1]")
    assert "bad.jsonl:1: no text 'question' (seen: 'a')" in with_line(csqa, {"a": 1})
    assert "no 'answerKey'; the test split" in with_line(csqa, {**good, "answerKey": ""})
    assert "the answerKey 'F' is none of A, B" in with_line(csqa, {**good, "answerKey": "F"})
    assert "no list of 'choices'" in with_line(csqa, {"question": "q", "choices": {"label": [1]}})
    one = benchmark_files.csqa("q", ["x"], "A")
    assert "labelled ['A']" in with_line(csqa, one)
    for answer in ("18", "#### many", "#### nan"):
        line = {"question": "q", "answer": answer}
        assert "does not end in '#### NUMBER'" in with_line(gsm8k.TASK, line)
    own = {"prompt": "p", "choices": ["a", "b"]}
    assert "neither one of the choices" in with_line(choices.TASK, own | {"answer": 2})
    assert "neither one of the choices" in with_line(choices.TASK, own | {"answer": True})
    assert "not empty" in with_line(choices.TASK, own | {"choices": ["a", ""]})
    assert "all different" in with_line(choices.TASK, own | {"choices": ["a", "a"]})
    for wrong in (None, "ab", {"a": 1}, ["a", 1], ["a", None]):
        line = own | {"choices": wrong, "answer": 0}
        assert "bad.jsonl:1: 'choices' must be a list of texts" in with_line(choices.CLOZE, line)
    for wrong in ([], ["a"]):
        assert "must be two or more" in with_line(choices.CLOZE, own | {"choices": wrong})
    half = {**benchmark_files.GSM8K[0], "question": "a \ud83d"}
    assert "bad.jsonl:1: half a surrogate pair at character 2 of 'question'" in with_line(
        gsm8k.TASK, half
    )
    half = own | {"choices": ["a", "\udc00"], "answer": 0}
    assert "half a surrogate pair at character 0 of 'choices'" in with_line(choices.TASK, half)
    assert "piqa" not in with_line(piqa.TASK, benchmark_files.SIQA[0])
    assert "give --labels_file" in with_line(piqa.TASK, benchmark_files.PIQA[0])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_special_files_and_addresses(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert "is a named pipe, not a file" in error_of(gsm8k.TASK, tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    assert "is a device, not a file" in error_of(gsm8k.TASK, tmp_path / f"zero{suffix}")
    assert "is an address" in error_of(gsm8k.TASK, f"s3://bucket/a{suffix}")


@pytest.mark.parametrize("after", ["", "\n", " \r\n", "\t", "\u00a0", "\n\n"])
@pytest.mark.parametrize("before", ["", " ", "\n "])
def test_blanks_around_answers_do_not_matter(tmp_path, before, after):
    def read_one(task, record):
        return read(task, write_lines(tmp_path / "a.jsonl", [record]))

    record = {"question": "q", "answer": f"2 + 3 = 5\n####{before}5{after}"}
    assert read_one(gsm8k.TASK, record) == [Item("Q: q\nA:", " 5", (), "number")]
    record = benchmark_files.csqa("q", ["x", "y"], f"{before}B{after}")
    assert read_one(commonsense_qa.TASK, record)[0].answer == " B"
    record = {"prompt": "p", "choices": [" x", " y"], "answer": f"{before}y{after}"}
    assert read_one(choices.TASK, record)[0].answer == " y"
    for task, example in ((piqa.TASK, benchmark_files.PIQA[0]), (SIQA, benchmark_files.SIQA[0])):
        assert read_one(task, example | {"label": f"{before}1{after}"}) == read_one(
            task, example | {"label": 1}
        )
        assert read_one(task, example | {"label": 1.0}) == read_one(task, example | {"label": 1})


def test_an_answer_that_fits_two_choices_is_refused(tmp_path):
    record = {"prompt": "p", "choices": ["a", " a"], "answer": "a "}
    path = write_lines(tmp_path / "a.jsonl", [record])
    assert "neither one of the choices" in error_of(choices.TASK, path)
    write_lines(path, [record | {"answer": " a"}])
    assert read(choices.TASK, path)[0].answer == " a"


@pytest.mark.parametrize("labels", ["AB", "ab", "12", (1, 2), ("A ", "B\n")])
def test_labels_of_choices_are_read_however_they_are_written(tmp_path, labels):
    record = {
        "question": "q",
        "choices": {"label": list(labels), "text": ["x", "y"]},
        "answerKey": labels[1],
    }
    path = write_lines(tmp_path / "a.jsonl", [record])
    assert read(commonsense_qa.TASK, path) == [
        Item("Q: q\n(A) x\n(B) y\nA:", " B", (" A", " B"), "letter")
    ]


@pytest.mark.parametrize("answer", [True, 0, 1.5, 2, ["A"], {"A": 1}, "A\x1b[31m"])
def test_what_cannot_be_an_answer_is_one_line(tmp_path, answer):
    path = tmp_path / "a.jsonl"
    for task, record, said in [
        (gsm8k.TASK, {"question": "q", "answer": answer}, "'answer' holds"),
        (commonsense_qa.TASK, benchmark_files.csqa("q", ["x", "y"], answer), "is none of A, B"),
        (piqa.TASK, benchmark_files.PIQA[0] | {"label": answer}, "must be one of 0, 1"),
        (choices.TASK, {"prompt": "p", "choices": ["x", "y"], "answer": answer}, "neither one"),
    ]:
        if task in (piqa.TASK, choices.TASK) and type(answer) is int and not answer:
            continue  # number 0 is the first choice
        if task == gsm8k.TASK and isinstance(answer, str):
            said = "does not end in '#### NUMBER'"
        message = error_of(task, write_lines(path, [record]))
        assert message.startswith(f"{path}:1: ") and said in message and "\x1b" not in message


def test_files_that_are_no_records(tmp_path):
    path = tmp_path / "bad.jsonl"
    for content, said in [
        (b"\xff\xfe{", "not UTF-8 at byte 0"),
        ('{"question": "a"}'.encode("utf-16-le"), "iconv -f UTF-16LE"),
        (b'{"question": "a"}\n' + b"[" * 100_000, "bad.jsonl:2: not JSON"),
        (b'{"question": 1.5, "answer": "#### 1"}', "bad.jsonl:1: 'question' holds a number"),
        (b'{"question": "q", "answer": null}', "bad.jsonl:1: 'answer' holds null"),
    ]:
        path.write_bytes(content)
        assert said in error_of(gsm8k.TASK, path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert "is larger than 64 MiB" in error_of(gsm8k.TASK, path)


def test_broken_parquet_files(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"question": ["q"] * 9, "answer": ["#### 1"] * 8 + [None]})
    pyarrow.parquet.write_table(table, path)
    assert "row 8: 'answer' holds null; it must hold a string" in error_of(gsm8k.TASK, path)
    content = path.read_bytes()
    for broken in (b"", content[:-20], content[:40] + bytes(40) + content[80:]):
        path.write_bytes(broken)
        assert "a.parquet: damaged or of another kind" in error_of(gsm8k.TASK, path)


def test_bad_labels(files, tmp_path):
    labels = tmp_path / "piqa-labels.lst"
    labels.write_text("1\n")
    assert "has 1 labels and" in error_of(piqa.TASK, files["piqa"])
    labels.write_text("1\n2\n")
    assert "piqa-labels.lst:2: the label is '2'; it must be one of 0, 1" in error_of(
        piqa.TASK, files["piqa"]
    )
    assert "leave out --labels_file" in error_of(gsm8k.TASK, files["gsm8k"], str(labels))
