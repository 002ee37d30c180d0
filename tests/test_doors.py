"""The programs as a user runs them, on a random checkpoint and made-up text."""

import json
import re
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runs.metrics_file import read_rows
from tests.tiny_runs import TINY, hf_folder, refusal, run, run_alone, start, write_text

SMALL = "--config=configs/small_hf.py"
# Interrupted and plain runs share a stage that compiles in no time.
PLAIN = ("--config.stage_1.objective=next_token", "--config.data.seq_len=24")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with checkpoints of each family, text to train on and text held out."""
    place = tmp_path_factory.mktemp("doors")
    for family in ("llama", "mistral", "qwen2"):
        hf_folder(place / family, family)
    write_text(place / "train.txt")
    write_text(place / "held.jsonl", 30, seed=1)
    return place


@pytest.fixture(scope="module")
def given(place):
    return (SMALL, f"--init_from={place / 'llama'}", f"--text={place / 'train.txt'}", *TINY)


@pytest.fixture(scope="module")
def trained(place, given):
    """The working directory of a whole curriculum, two steps a stage."""
    done = run_alone("launch", *given, f"--workdir={place / 'W'}", "--stage=all", "--max_steps=2")
    stages = "stage 1 (think-16-8), stage 2 (think-12-4), stage 3 (think-8-4), stage 4 (ntp)"
    assert done.stdout == f"Done: {stages} in {place / 'W'}\n"
    assert "stage 4 teacher scores: 2/2" in done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return place / "W"


@pytest.fixture(scope="module")
def thinking_export(place, trained):
    run("convert", f"--workdir={trained}", "--stage=3", f"--export={place / 'thinking'}")
    return place / "thinking"


# launch --------------------


@pytest.mark.slow
def test_every_stage_is_trained(trained):
    for number in range(1, 5):
        rows = read_rows(trained / f"stage_{number}" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2]
        assert all(np.isfinite(row["loss"]) and not row["skipped_steps"] for row in rows)


@pytest.mark.slow
def test_a_dry_run_leaves_no_trace(place, given, trained):
    before = sorted(place.rglob("*"))
    options = (*given, "--stage=all", "--dry_run")
    fresh = run("launch", *options, f"--workdir={place / 'fresh'}").stdout
    assert sorted(place.rglob("*")) == before
    for part in ("think-16-8", "5/2", "initial model, taught by stage 2", "7,200", "13,520"):
        assert part in fresh
    assert "Memory of a device" in fresh
    third = (*given, "--stage=3", "--dry_run", f"--workdir={trained}", "--max_steps=5")
    partly = run("launch", *third).stdout
    assert sorted(place.rglob("*")) == before
    assert re.search(r"think-8-4.* 5 .* 2 .*\n", partly)  # of 5 steps 2 are done


def test_missing_stages_are_named_with_the_command_that_runs_them_first(place, given):
    line = refusal("launch", *given, f"--workdir={place / 'new'}", "--stage=3", "--max_steps=2")
    reason, _, command = line.partition("; run all of them with: ")
    assert "cannot start before stage 1 (think-16-8), stage 2 (think-12-4), not finished" in reason
    assert command.split()[:3] == ["python", "-m", "fqs_jax.launch"]
    words = {*given, f"--workdir={place / 'new'}", "--stage=1,2,3", "--max_steps=2"}
    assert {*command.split()[3:]} == words


@pytest.mark.slow
def test_a_run_interrupted_by_ctrl_c_goes_on(place, given):
    """SIGTERM is in tests/training/test_kill_resume.py."""
    root = place / "interrupted"
    options = (*given, *PLAIN, f"--workdir={root}", "--stage=1", "--config.stage_1.steps=1000")
    process = start("launch", *options, "--config.checkpoint_every=10000")
    metrics = root / "stage_1" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and read_rows(metrics)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    step = int(re.findall(r"saved at step (\d+) of 1000; run the same command again", err)[0])
    assert 1 <= step < 1000 and "SIGINT" in err and "Traceback" not in err and not out
    assert [p.name for p in (root / "stage_1" / "checkpoints").iterdir()] == [str(step)]

    run("launch", *options, "--config.checkpoint_every=10000")
    rows = read_rows(metrics)
    assert [row["step"] for row in rows] == list(range(1, 1001))
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_a_changed_config_is_refused(given, trained):
    line = refusal("launch", *given, f"--workdir={trained}", "--config.batch_size=3", "--stage=1")
    assert "was begun with config.batch_size=2, now it is 3" in line


# evaluate --------------------


def evaluate(*arguments):
    """The one JSON line that a program prints."""
    done = run("evaluate", *arguments, "--json")
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def thoughts(place, trained):
    """Scores of a thinking stage."""
    return evaluate(f"--checkpoint={trained}", "--stage=3", f"--text={place / 'held.jsonl'}")


@pytest.mark.slow
def test_evaluate(place, thoughts):
    held = f"--text={place / 'held.jsonl'}"
    base = evaluate(f"--checkpoint={place / 'llama'}", held)
    assert base["documents"] == base["windows"] == 30 and base["model"] == "llama"
    assert 100 < base["tokens"] == thoughts["tokens"]
    assert "nll_thought" not in base
    for name in ("nll_base", "nll_thought"):  # a few steps at small rates
        assert thoughts[name] == pytest.approx(base["nll_base"], abs=0.1)
    assert thoughts["nll_base"] != base["nll_base"]


@pytest.mark.slow
def test_evaluate_all_stages(place, trained):
    options = ("--all_stages", f"--workdir={trained}", f"--text={place / 'held.jsonl'}")
    done = run("evaluate", *options, "--thought_seeds=1")
    lines = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [row[0] for row in cells] == ["init", "init", "1", "2", "3", "4"]
    assert cells[1][1].startswith("base at temperature ")
    assert all(float(row[4]) < 10 and float(row[8]) > 0 and row[3] == "-" for row in cells)
    assert (trained / "tradeoff.png").exists()


# generate --------------------


@pytest.mark.slow
def test_generate_shows_thoughts_on_request(trained):
    options = (f"--checkpoint={trained}", "--stage=3", "--prompt=the cat", "--max_new_tokens=5")
    shown = run("generate", *options, "--show_thoughts").stdout
    hidden = run("generate", *options).stdout
    assert shown.startswith("the cat") and hidden.startswith("the cat")
    assert 1 <= len(re.findall(r" ‹.*?\|-?\d\.\d\d› ", shown)) <= 5 and "‹" not in hidden
    assert re.sub(r" ‹.*?› ", "", shown, flags=re.DOTALL) == hidden


@pytest.mark.slow
def test_generate_from_a_file_and_of_nothing(place, trained):
    (place / "prompts.txt").write_text("the cat\n\nżółw 龟 [bold]\n", encoding="utf-8")
    options = (f"--checkpoint={trained}", "--max_new_tokens=4", "--stage=4")
    several = run("generate", *options, f"--prompt_file={place / 'prompts.txt'}", "--prompt=")
    lines = several.stdout.split("\n")
    assert any(line.startswith("the cat") for line in lines)
    assert any(line.startswith("żółw 龟 [bold]") for line in lines)
    empty = run("generate", *options, "--prompt=", "--show_thoughts").stdout
    assert empty.startswith("stage 4 (ntp) does not think: no thoughts to show\n")


# convert --------------------


def our_logits(loaded, tokens):
    return np.asarray(decoder.logits(loaded.params["lm"], jnp.asarray(tokens), loaded.model))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=pytest.mark.exhaustive)])
def test_exported_folders_are_stock(place, trained, family):
    root, stage = trained, 4
    if family != "llama":
        root, stage = place / f"W-{family}", 1
        options = (SMALL, f"--init_from={place / family}", f"--text={place / 'train.txt'}", *PLAIN)
        run("launch", *options, f"--workdir={root}", "--stage=1", "--max_steps=2")
    out = place / f"out-{family}"
    done = run("convert", f"--workdir={root}", f"--stage={stage}", f"--export={out}")
    assert done.stdout == f"{loading.load(root, str(stage)).label} exported to {out}\n"
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        assert (out / name).read_bytes() == (place / family / name).read_bytes()
    assert not (out / "thought.safetensors").exists()

    tokens = np.random.default_rng(0).integers(0, 300, (2, 30))
    ours = our_logits(loading.load(root, str(stage)), tokens)
    assert (ours != our_logits(loading.load(place / family), tokens)).any()  # trained
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.huggingface.test_transformers_parity import load_theirs

    with torch.no_grad():
        theirs = load_theirs(out)(torch.as_tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_exported_thinking_stage_thinks_the_same(place, trained, thinking_export, thoughts):
    assert (thinking_export / "thought.safetensors").exists()
    exported = evaluate(f"--checkpoint={thinking_export}", f"--text={place / 'held.jsonl'}")
    assert exported == thoughts | {"model": "thinking"}
    options = ("--prompt=the cat", "--max_new_tokens=5", "--show_thoughts")
    stage = run("generate", f"--checkpoint={trained}", "--stage=3", *options)
    assert run("generate", f"--checkpoint={thinking_export}", *options).stdout == stage.stdout


@pytest.mark.slow
def test_a_folder_that_is_taken_is_refused(trained, thinking_export):
    before = {p: p.stat().st_mtime_ns for p in thinking_export.iterdir()}
    line = refusal("convert", f"--workdir={trained}", "--stage=4", f"--export={thinking_export}")
    assert "thinking exists already" in line
    no_stage = ("--gguf=model.gguf", "--adapter", f"--export={thinking_export.with_name('free')}")
    assert "--adapter is for a stage with adapters" in refusal("convert", *no_stage)
    adapter = (f"--workdir={trained}", "--stage=4", *no_stage[1:], "--max_shard_gb=1")
    assert "--max_shard_gb is for whole models" in refusal("convert", *adapter)
    assert before == {p: p.stat().st_mtime_ns for p in thinking_export.iterdir()}


# What is refused, in one line each --------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--config.optimiser.clip_norm=1", "no field 'optimiser'; did you mean 'optimizer'?"),
        (
            f"{SMALL} --config.optimizer.clip_nrom=1",
            "no field 'clip_nrom'; did you mean 'clip_norm'",
        ),
        (f"{SMALL} --config.stage_1.n_ahead=four", "'four' is not a whole number"),
        (f"{SMALL} --max_step=3", "Unknown command line flag 'max_step'. Did you mean: max_steps"),
        (f"{SMALL} max_steps=3", "unknown argument 'max_steps=3'"),
        ("--config=configs/none.py", "cannot read the config: No such file .* 'configs/none.py'"),
        (SMALL, "--init_from=HF_DIR"),
        ("--workdir=", "--workdir is missing"),
        (f"{SMALL} --init_from=PLACE/llama", "no text to train on: give --text=FILE"),
        (f"{SMALL} --init_from=PLACE/llama --text=PLACE/no*.txt", "no file matches .*no..txt"),
        (
            f"{SMALL} --init_from=PLACE/bare --text=PLACE/train.txt",
            "bare is no Hugging Face folder: it has no config.json",
        ),
        (
            f"{SMALL} --init_from=PLACE/cut --text=PLACE/train.txt",
            "cut/model.safetensors is damaged",
        ),
        (
            f"{SMALL} --init_from=PLACE/llama --text=PLACE/latin.txt",
            "latin.txt: not UTF-8 at byte 3",
        ),
        (
            f"{SMALL} --init_from=PLACE/llama --text=PLACE/blank.txt",
            "blank.txt: nothing but blanks",
        ),
        (f"{SMALL} --init_from=PLACE/llama --stage=foo", "no stage 'foo'; there are 1 .think-16-8"),
        (
            f"{SMALL} --init_from=PLACE/llama --workdir=PLACE/train.txt",
            "train.txt is a file, not a",
        ),
        ("--batch_size=3", "a field of the config is written --config.batch_size=VALUE"),
        ("--config.learning_rate=1", "each stage has its own: --config.stage_N.learning_rate"),
        ("--config=sweeps/default", "is a sweep, not an experiment: run it with fqs sweep"),
    ],
)
def test_launch_refuses(place, arguments, expected):
    (place / "latin.txt").write_bytes(b"caf\xe9")
    (place / "blank.txt").write_text(" \n")
    (place / "bare").mkdir(exist_ok=True)
    if not (place / "cut").exists():
        (place / "cut").mkdir()
        for path in (place / "llama").iterdir():
            whole = path.read_bytes()
            (place / "cut" / path.name).write_bytes(whole[: 2000 if "safe" in path.name else None])
    words = arguments.replace("PLACE", str(place)).split()
    if not any(word.startswith("--workdir") for word in words):
        words.append(f"--workdir={place / 'refused'}")
    assert re.search(expected, refusal("launch", *words))
    assert not list(place.glob("refused/stage_*/checkpoints/*"))


@pytest.mark.parametrize(
    "program, arguments, expected",
    [
        ("evaluate", "--checkpoint=PLACE/llama", "--text is missing"),
        ("evaluate", "--checkpoint=PLACE/none --text=PLACE/held.jsonl", "there is no folder"),
        ("evaluate", "--checkpoint=PLACE/llama --stage=1 --text=PLACE/held.jsonl", "no stage 1"),
        ("evaluate", "--all_stages --workdir=PLACE/llama", "has no trained stage"),
        ("generate", "--checkpoint=PLACE/llama", "--prompt is missing"),
        ("generate", "--checkpoint=PLACE/llama --prompt=a --top_p=2", "top_p must be above 0"),
        ("generate", "--checkpoint=PLACE/llama --prompt=a --temperature=nan", "must be finite"),
        ("generate", "--checkpoint=PLACE/llama --prompt_file=PLACE/train.txt.16", "not UTF-8 at"),
        ("generate", "--checkpoint=PLACE/llama --prompt_file=PLACE/none", "none: no such file"),
        ("convert", "--workdir=PLACE/llama --stage=1 --export=PLACE/x", "no working directory"),
    ],
)
def test_the_others_refuse(place, program, arguments, expected):
    (place / "train.txt.16").write_text("the cat", encoding="utf-16")
    assert expected in refusal(program, *arguments.replace("PLACE", str(place)).split())


# Real checkpoints --------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_real_checkpoints(shared, tmp_path, family):
    """The figure of their README: BOS and 1200-character pieces of the first 60 000 characters."""
    text = (shared / "real" / "text" / "tinystories_valid_794k.txt").read_text()[:60_000]
    pieces = [json.dumps({"text": text[i : i + 1200]}) for i in range(0, len(text), 1200)]
    (tmp_path / "pieces.jsonl").write_text("\n".join(pieces))
    folder = shared / "real" / "checkpoints" / f"stories260K-{family}"
    scores = evaluate(f"--checkpoint={folder}", f"--text={tmp_path / 'pieces.jsonl'}")
    assert scores["nll_base"] == pytest.approx(1.4422, abs=1e-4)
    assert scores["tokens"] == 25550 and scores["documents"] == 50
