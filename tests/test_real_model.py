"""A real pretrained model, from a GGUF file through `convert`, against transformers' reading of that file."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from configs import smollm2_word_problems
from fqs_jax.data import corpus
from fqs_jax.data.problems import answer_tokens
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runs.metrics_file import read_rows
from tests.conftest import REPO
from tests.tiny_runs import run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

# Real English, code, numbers and tables.
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# English that never changes, so that losses stay.
ENGLISH = REPO / "LICENSE"


@pytest.fixture(scope="module", autouse=True)
def headers_read_once():
    """transformers has the library read the header of the file three times, for seconds each."""
    import gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        yield


@pytest.fixture(scope="module")
def theirs(smollm2):
    """transformers' model of the GGUF file."""
    file = smollm2.gguf
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def loaded(smollm2):
    """Our model of the exported folder."""
    return loading.load(str(smollm2.folder))


def test_weights_are_theirs_bit_for_bit(smollm2, theirs):
    ours = load_file(smollm2.folder / "model.safetensors")
    expected = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert set(expected) - set(ours) == {"lm_head.weight"}  # which is the embedding
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_token_ids_are_theirs(smollm2, loaded):
    file = smollm2.gguf
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    backend = tokenizer.backend_tokenizer
    ours = loaded.tokenizer
    lines = [line for page in PAGES for line in page.read_text().splitlines() if line.strip()]
    lines += ["<|im_start|>user\n12 + 345?<|im_end|>", "naïve 日本語 e\u0301", "x  0 ½\n\n1"]
    assert len(lines) > 1000
    # transformers does not know the rule "smollm" and uses that of GPT-2. They differ only at digits
    # after several blanks, and at numbers that are not ASCII.
    odd = re.compile(r"\s\s\d|[^\x00-\x7f]")
    plain = [line for line in lines if not odd.search(line)]
    assert len(plain) > 900
    for line in plain:
        assert ours.encode(line) == backend.encode(line).ids, line
    # The rule that the authors of the model published: single digits first.
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for line in lines:
        assert ours.encode(line) == backend.encode(line).ids, line
    messages = [{"role": "user", "content": "hello"}]
    exported = transformers.AutoTokenizer.from_pretrained(smollm2.folder)
    for one in (tokenizer, exported):
        text = one.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


def test_stories_fit_its_tokens(loaded):
    """The lengths in configs/smollm2_word_problems.py."""
    c = smollm2_word_problems.get_config()
    tokenizer, task = loaded.tokenizer, corpus.built_in_task(c.data, 0)
    documents = dataclasses.replace(task, worked=1.0, direct=0.0).documents(3000)
    encoded = [tokenizer.encode(document) for document in set(documents)]
    assert max(map(len, encoded)) <= c.data.seq_len
    asked = task.problems("test") + task.problems("new_wording")
    _, tokens = answer_tokens.encode(tokenizer, [prompt for prompt, _ in asked], task.answers)
    assert tokens.shared == () and len(set(tokens.own)) == 11
    [begin], [end] = (tokenizer.encode(c.thought[key]) for key in ("start_text", "end_text"))
    answered = dataclasses.replace(task, worked=0.0, direct=1.0, answered_share=1.0)
    longest = max(len(tokenizer.encode(text)) for text in set(answered.documents(3000)))
    for settings in (c.stage_1.settings, c.stage_2.settings):
        assert f"data.seq_len={longest + 1}" in settings
    for ids in encoded:
        assert ids[-2] == ids[ids.index(begin) - 1] == end
        assert len(ids[ids.index(begin) + 1 : -2]) == c.stage_1.n_ahead - 3


def test_loss_is_theirs(loaded, theirs):
    ids_BxT = np.array([loaded.tokenizer.encode(ENGLISH.read_text())[:128]])
    with torch.no_grad():
        tokens = torch.as_tensor(ids_BxT)
        expected = theirs(tokens, labels=tokens).loss.item()
    logits_BxTxV = decoder.logits(loaded.params["lm"], jnp.asarray(ids_BxT), loaded.model)
    log_probs = jax.nn.log_softmax(logits_BxTxV[0, :-1])
    loss = -np.asarray(log_probs)[np.arange(127), ids_BxT[0, 1:]].mean()
    assert loss == pytest.approx(expected, abs=1e-4) and 1 < loss < 6


@pytest.mark.exhaustive
def test_it_learns_to_think_and_is_exported(smollm2, tmp_path):
    """Two steps of a thinking stage, a shown thought, and an export that transformers reads alike."""
    (tmp_path / "text.txt").write_text(ENGLISH.read_text())
    run(
        "launch",
        "--config=configs/small_hf.py",
        f"--init_from={smollm2.folder}",
        f"--text={tmp_path / 'text.txt'}",
        f"--workdir={tmp_path / 'W'}",
        "--stage=1",
        "--config.stage_1.n_ahead=4",
        "--config.stage_1.n_ahead_talk=2",
        "--config.thought.position_fraction=0.1",
        "--config.data.seq_len=32",
        "--config.batch_size=1",
        "--max_steps=2",
    )
    rows = read_rows(tmp_path / "W/stage_1/metrics.jsonl")
    assert rows[-1]["step"] == 2 and rows[-1]["skipped_steps"] == 0 and 1 < rows[-1]["nll_base"] < 8
    stage = (f"--checkpoint={tmp_path / 'W'}", "--stage=1")
    shown = run("generate", *stage, "--prompt=Once", "--max_new_tokens=2", "--show_thoughts").stdout
    assert shown.startswith("Once") and "\u2039" in shown
    run("convert", f"--workdir={tmp_path / 'W'}", "--stage=1", f"--export={tmp_path / 'out'}")
    ours = loading.load(str(tmp_path / "out"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    ids_BxT = np.array([ours.tokenizer.encode("Once upon a time there was a little cat.")])
    with torch.no_grad():
        expected_BxTxV = theirs(torch.as_tensor(ids_BxT)).logits.numpy()
    logits_BxTxV = decoder.logits(ours.params["lm"], jnp.asarray(ids_BxT), ours.model)
    np.testing.assert_allclose(logits_BxTxV, expected_BxTxV, atol=1e-3)
