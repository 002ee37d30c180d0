"""Answers in tokenizers that were not made for the task, against whole texts encoded one by one."""

import pytest
import tokenizers

from configs import common
from fqs_jax.data import corpus, tokenizer_training
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.problems import answer_tokens
from fqs_jax.data.problems.clock import Clock
from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.stories import Stories
from fqs_jax.data.problems.word_problems import WordProblems
from fqs_jax.runtime.errors import UserError
from tests.chats import CHATML, write_bpe

SPECIALS = ["<s>", "</s>"]


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """Byte-level BPE of stories, as of a pretrained model: words are tokens, figures stand alone."""
    folder = tmp_path_factory.mktemp("bpe")
    texts = [*Stories(lengths=(2, 3, 4)).documents(3000), *Clock().documents(200)]
    write_bpe(folder, texts, SPECIALS, CHATML, 800, digits=True, bos_token="<s>")
    return tokenizer_lib.load(folder)


@pytest.mark.parametrize("work", ["values", "equations"])
def test_documents_come_back_and_their_answers_are_one_token(english, work):
    task = Stories(work=work, unanswered=0.2)
    for document in task.documents(200):
        assert english.decode(english.encode(document)) == document
    asked = task.problems("test")[:100] + task.problems("new_wording")[:100]
    contexts, tokens = answer_tokens.encode(english, [prompt for prompt, _ in asked], task.answers)
    assert tokens.shared == () and len(set(tokens.own)) == 21
    for (prompt, answer), context in zip(asked, contexts, strict=True):
        own = tokens.own[task.answers.index(answer)]
        assert english.encode(f"{prompt} {answer}") == [*context, own]


@pytest.mark.parametrize("task", [Clock(), Multiplication()])
def test_a_space_before_figures_is_shared(english, task):
    texts = ["1 2 * 3 1 =", "1 2 * 3 1 = 3 7", "5 +1 *3 ="]
    contexts, tokens = answer_tokens.encode(english, texts, task.answers)
    assert english.decode(tokens.shared) == " "
    for text, context in zip(texts, contexts, strict=True):
        for answer, own in zip(task.answers, tokens.own, strict=True):
            assert english.encode(f"{text} {answer}") == [*context, *tokens.shared, own]


def test_numbers_of_several_figures_are_refused(english):
    with pytest.raises(UserError, match=r"the answer '10' is 2 tokens in this tokenizer.*stories"):
        answer_tokens.encode(english, ["how many ? ="], WordProblems().answers)


def test_a_training_run_is_refused_before_it_begins(english):
    c = common.get_config()
    c.data.num_documents = 10
    c.data.source = "word_problems"
    with pytest.raises(UserError, match="the answer '10' is 2 tokens in this tokenizer"):
        corpus.dataset(c.data, english, 2, 0, 0)
    c.data.source = "stories"
    assert corpus.dataset(c.data, english, 2, 0, 0) is not None


@pytest.mark.parametrize("source", ["clock", "multiplication"])
def test_a_student_of_questions_needs_answers_of_one_token(english, source):
    """It learns the next token alone, and here all answers begin with the same one."""
    c = common.get_config()
    c.data.num_documents = 10
    c.data.source = source
    assert corpus.dataset(c.data, english, 2, 0, 0) is not None
    with pytest.raises(UserError, match=f"an answer of {source} is more than one token behind the"):
        corpus.dataset(c.data, english, 2, 0, 0, questions=True)


def test_a_student_of_questions_needs_whole_ones(english):
    c = common.get_config()
    c.data.num_documents = 50
    c.data.source, c.data.rows = "stories", "crop"
    longest = max(len(english.encode(text)) for text in Stories().documents(50))
    c.data.seq_len = longest + 1  # and the opening
    rows = corpus.dataset(c.data, english, 50, 0, 0, questions=True)
    assert rows.batch(0)["mask"].sum(axis=1).max() == longest + 1
    c.data.seq_len = longest
    assert corpus.dataset(c.data, english, 50, 0, 0).batch(0)["mask"].sum(axis=1).max() == longest
    message = (
        rf"document \d+ has {longest} tokens and a row {longest - 1}: the end of this question"
    )
    with pytest.raises(UserError, match=message):
        corpus.dataset(c.data, english, 50, 0, 0, questions=True).batch(0)


def test_answers_without_a_token_of_their_own_are_refused(tmp_path):
    """In a small vocabulary without bytes, all unknown words are the same token."""
    task = Clock()
    tokenizer = tokenizer_training.train_sentencepiece(
        task.documents(100),
        tmp_path,
        len(task.pieces) + 3,
        user_defined_symbols=task.pieces,
        byte_fallback=False,
    )
    _, tokens = answer_tokens.encode(tokenizer, ["5 +1 ="], task.answers)
    assert tokens.shared == () and len(set(tokens.own)) == 7
    with pytest.raises(UserError, match=r"the answer 'y' is the token of another answer"):
        answer_tokens.encode(tokenizer, ["5 +1 ="], ["x", "y"])


def test_text_that_changes_when_an_answer_follows_is_refused(tmp_path):
    """A tokenizer that joins words: "is four" is one token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u0120")
    made.train_from_iterator(["is four", "is five"] * 20, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_lib.load(tmp_path)
    with pytest.raises(UserError, match="tokenizer joins the end of 'is' with the answer"):
        answer_tokens.encode(tokenizer, ["is"], ["four", "five"])
