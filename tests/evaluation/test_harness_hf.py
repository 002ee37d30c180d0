"""Our model in the lm-evaluation-harness against the harness's own, request by request, on byte-level BPE."""

import dataclasses

import jax
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.data import chat
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.evaluation.stop_texts import AllStopped, StopTexts
from fqs_jax.inference import continuations
from fqs_jax.inference.generation import Emitted
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from tests.chats import write_bpe
from tests.tiny_runs import sentences

pytest.importorskip(
    "lm_eval", reason="lm_eval is in no extra but `eval`; pip install 'fqs_jax[eval]'"
)
pytest.importorskip("accelerate", reason="the harness's own model needs it")

LONGEST = 48
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}{% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "the cat saw"},
    {"role": "assistant", "content": "the mat."},
    {"role": "user", "content": "a small dog"},
]


def write_tokenizer(folder):
    """Byte-level BPE that knows the sentences; texts start with <|endoftext|>."""
    texts = [*sentences(200), "11 12 112 1212 22"]
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), SPECIALS[0])
    return write_bpe(folder, texts, SPECIALS, TEMPLATE, **names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bpe")
    size = write_tokenizer(place / "tokenizer")
    config = ModelConfig(
        vocab_size=size,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        max_seq_len=LONGEST,
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32),
        decoder.abstract_params(config),
    )
    params["head"]["kernel"][:, 1:3] *= 3  # so that generated texts have special tokens
    huggingface.export(params, config, place / "model", place / "tokenizer")
    return place / "model"


@pytest.fixture(scope="module")
def both(folder):
    """The harness's own model and ours."""
    from lm_eval.models.huggingface import HFLM

    from fqs_jax.lm_eval_adapter import FqsJax

    # The cache would give a text the scores of another one that has equal tokens but is cut elsewhere.
    options = {"dtype": "float32", "device": "cpu", "batch_size": 1, "logits_cache": False}
    theirs = HFLM(pretrained=str(folder), **options)
    return theirs, FqsJax(str(folder), batch_size=4)


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


PAIRS = [
    ("the cat", " saw the mat."),
    ("the cat ", "saw the mat."),  # the space goes with the word
    ("the cat\n\n", "saw"),
    ("the", "cat"),
    ("one old ki", "ng sat on a big tree"),  # joined at the border, and longer
    ("11 ", "12 1212"),
    ("", "the cat saw"),
    ("", "<|endoftext|>the cat"),
    ("<|endoftext|>the cat", " saw"),  # not twice
    ("<|im_start|>user\nthe cat<|im_end|>\n", "the mat<|im_end|>"),
    ("   ", "cat"),
    ("the red bird " * 30, "ran after seven stars"),  # loses its beginning
    ("caf\u00e9 \u4f60", "\u597d \U0001f600"),
]


def test_log_probabilities_are_those_of_the_harness(both):
    theirs, ours = both
    asked = instances("loglikelihood", PAIRS)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    for pair, found, right in zip(PAIRS, ours.loglikelihood(asked), expected, strict=True):
        assert found[0] == pytest.approx(right[0], abs=1e-4), pair
        assert found[1] == right[1], pair


def test_tokens_are_cut_as_by_the_harness(both):
    theirs, ours = both
    for context, continuation in PAIRS:
        if context:
            expected = theirs._encode_pair(context, continuation)
            found = continuations.encode(ours.loaded.tokenizer, context, continuation)
            assert list(found) == list(expected)


def test_a_choice_that_joins_its_context_has_a_score(both):
    """The harness's own model ends with an assertion there."""
    _, ours = both
    tokenizer = ours.loaded.tokenizer
    joined = [("the ca", "t"), ("one o", "ld"), ("seve", "n"), ("the small do", "g")]
    for context, continuation in joined:
        before, after = continuations.encode(tokenizer, context, continuation)
        whole = tokenizer.with_opening(context + continuation)
        assert len(whole) <= len(tokenizer.with_opening(context))
        assert after and before + after == whole
    scores = ours.loglikelihood(instances("loglikelihood", joined))
    wholes = [("", context + continuation) for context, continuation in joined]
    total = ours.loglikelihood(instances("loglikelihood", wholes))
    for (log_prob, _), (whole, _) in zip(scores, total, strict=True):
        assert whole - 1e-4 <= log_prob < 0  # the last of the factors of the whole
    assert ours.loglikelihood(instances("loglikelihood", [("the cat", "")])) == [(0.0, True)]


def test_a_continuation_without_a_token_is_refused(both):
    _, ours = both

    class Dropping(type(ours.loaded.tokenizer)):
        def encode(self, text):
            return super().encode(text.rstrip("\u200b"))

    fields = {
        name: getattr(ours.loaded.tokenizer, name) for name in ("backend", "bos_id", "eos_id")
    }
    tokenizer = Dropping(**fields, pad_id=0, add_bos=True)
    with pytest.raises(UserError, match="u200b' has no token of its own"):
        continuations.encode(tokenizer, "the cat", "\u200b")


def test_perplexities_are_those_of_the_harness(both):
    theirs, ours = both
    texts = [
        ("the cat saw nobody.",),
        ("the red bird ran after seven stars. " * 12,),
        ("caf\u00e9",),
    ]
    asked = instances("loglikelihood_rolling", texts)
    before, theirs.add_bos_token = theirs.add_bos_token, False  # see docs/harness.md
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    theirs.add_bos_token = before
    assert ours.loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3)


CONTEXTS = [f"{line[:20]}" for line in sentences(6, seed=4)] + [
    "the red bird " * 30,
    "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>the cat",
]


@pytest.mark.parametrize(
    "settings",
    [
        {"until": [], "max_gen_toks": 12},
        {"until": ["<|im_end|>"], "max_gen_toks": 12},
        {"until": ["<|im_start|>", "<|im_end|>"], "max_gen_toks": 30},
        {"until": ["e", "\n\n"], "max_gen_toks": 12},
        {"until": ["e\x0bt", "!!!"], "max_gen_toks": 30, "do_sample": False, "temperature": 1.0},
        {"until": "o", "max_new_tokens": 7},
    ],
)
def test_generated_texts_are_those_of_the_harness(both, settings):
    theirs, ours = both
    asked = instances("generate_until", [(context, dict(settings)) for context in CONTEXTS])
    expected = theirs.generate_until(asked, disable_tqdm=True)
    found = ours.generate_until(asked)
    assert found == expected
    free = {"until": [], "max_gen_toks": settings.get("max_gen_toks", 7)}
    asked = instances("generate_until", [(context, free) for context in CONTEXTS])
    if settings["until"]:
        assert found != ours.generate_until(asked)  # some texts did stop


def emitted(*tokens):
    return Emitted(np.array(tokens), np.zeros((len(tokens), 0)), np.zeros(len(tokens)), 0.0)


@pytest.mark.parametrize(
    "stop, text",
    [
        ("<|im_end|>", "the cat\n"),
        ("\n<|im_end|>", "the cat"),
        ("<|im_end|>\na", "the cat\n"),
        ("<|im_end|>b", "the cat\n\na dog"),  # never comes
        ("cat\n", "the "),
        ("a", "the c"),
        ("\n\n", "the cat"),  # a special token stands between
        ("<|im_start|>", "the cat\n\na dog"),
    ],
)
def test_stop_texts_with_special_tokens(both, stop, text):
    tokenizer = both[1].loaded.tokenizer
    ids = tokenizer.encode("the cat\n<|im_end|>\na dog")
    growing = StopTexts(tokenizer, [stop, ""], 2)
    for token in ids:
        try:
            growing.step(emitted(token, -1))
        except AllStopped:
            break
    assert growing.texts == [text, ""]


def test_a_stop_text_ends_a_text_in_the_middle_of_a_character(both):
    tokenizer = both[1].loaded.tokenizer
    ids = tokenizer.encode("\u4f60\u597d!")
    assert len(ids) > 3
    growing = StopTexts(tokenizer, ["\u597d"], 1)
    with pytest.raises(AllStopped):
        for token in ids:
            growing.step(emitted(token))
    assert growing.texts == ["\u4f60"]


@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:2], CHAT[:2]])
@pytest.mark.parametrize("ends", [True, False])
def test_chats_are_written_as_by_the_harness(both, messages, ends):
    theirs, ours = both
    assert ours.chat_template(True) == theirs.chat_template(True) == TEMPLATE
    found = ours.apply_chat_template(messages, add_generation_prompt=ends)
    assert found == theirs.apply_chat_template(messages, add_generation_prompt=ends)
    assert found.startswith("<|endoftext|><|im_start|>")
    assert ours.loaded.tokenizer.with_opening(found) == theirs.tok_encode(found)


def test_a_template_without_system_messages_gets_none(both, caplog, monkeypatch):
    ours = both[1]
    plain = chat.choose(ours.loaded.source, ours.loaded.tokenizer)
    monkeypatch.setattr(ours, "_template", dataclasses.replace(plain, text=STRICT + TEMPLATE))
    assert ours.apply_chat_template(CHAT) == plain.render(CHAT[1:])
    assert "the chat is written without them" in caplog.text and "(no system)" in caplog.text
    with pytest.raises(UserError, match="cannot be applied"):
        monkeypatch.setattr(ours, "_template", dataclasses.replace(plain, text="{% for %}"))
        ours.apply_chat_template(CHAT[1:])


def test_the_spelling_of_a_token(folder):
    tokenizer = tokenizer_lib.load(folder)
    assert [tokenizer.piece_of(i) for i in range(3)] == SPECIALS
    assert tokenizer.piece_of(-1) == tokenizer.piece_of(10**6) == ""
