"""The clock task: its sums, its splits, and its symbols as tokens."""

import collections
import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.problems.clock import Clock
from fqs_jax.data.problems.task import SPLITS
from fqs_jax.runtime.errors import UserError

OPS = {"+1": (1, 1), "+3": (1, 3), "*2": (2, 0), "*3": (3, 0), "-2": (1, 5)}  # v -> a v + b mod 7
seeds = st.integers(0, 1000)

NAN, INF = float("nan"), float("inf")


def work_of(prompt: str) -> list[int]:
    """The values after each operation of "5 +1 *3 =", by tables of this test's own."""
    start, *operations, equals = prompt.split()
    assert equals == "="
    values = [int(start)]
    for operation in operations:
        factor, shift = OPS[operation]
        values.append((factor * values[-1] + shift) % 7)
    return values[1:]


def parse(document: str) -> tuple[str, list[int] | None, int]:
    """A document as (prompt, numbers after the marker, answer)."""
    head, *middle, last = document.split(" = ")
    answer = int(last)
    if not middle:
        return f"{head} =", None, answer
    (shown,) = middle
    assert shown.startswith(": ")
    return f"{head} =", [int(number) for number in shown[2:].split()], answer


@given(seeds, st.integers(0, 10**9), st.sampled_from(SPLITS))
def test_documents_say_the_truth_about_problems_of_their_split(seed, index, split):
    clock = Clock(seed=seed)
    document = clock.document(index, split)
    assert document == Clock(seed=seed).document(index, split)
    prompt, shown, answer = parse(document)
    assert (prompt, str(answer)) in clock.problems(split)
    assert answer == work_of(prompt)[-1]
    assert shown is None or len(shown) == len(work_of(prompt))
    assert set(document.split()) <= set(clock.symbols)


@given(seeds, st.sampled_from([(2, 3), (1,), (3, 2, 4)]))
def test_splits_share_no_problem_and_leave_none_out(seed, lengths):
    clock = Clock(seed=seed, lengths=lengths)
    prompts = {split: [prompt for prompt, _ in clock.problems(split)] for split in SPLITS}
    every = [prompt for split in SPLITS for prompt in prompts[split]]
    assert len(every) == len(set(every)) == sum(7 * 5**n for n in lengths)
    for split in SPLITS:
        for prompt, answer in clock.problems(split):
            assert answer == str(work_of(prompt)[-1])


def test_splits_have_their_shares_at_each_length():
    clock = Clock()
    sizes = {split: [len(clock.problems(split, n)) for n in (2, 3)] for split in SPLITS}
    assert sizes == {"train": [122, 612], "validation": [18, 88], "test": [35, 175]}
    assert clock.problems("test") == clock.problems("test", 2) + clock.problems("test", 3)


def test_splits_depend_on_the_seed_but_not_on_other_lengths():
    assert Clock(lengths=(3,)).problems("test") == Clock(lengths=(2, 3, 4)).problems("test", 3)
    assert set(Clock(seed=1).problems("test")) != set(Clock(seed=0).problems("test"))


def test_answers_are_spread_in_every_split():
    for split in SPLITS:
        answers = collections.Counter(answer for _, answer in Clock().problems(split))
        assert set(answers) == set("0123456")
        assert max(answers.values()) < 0.25 * answers.total()


def test_documents_are_pinned():
    """Results of old runs are about these texts."""
    assert Clock().documents(4) == [
        "1 +3 *3 -2 = : 4 5 3 = 3",
        "1 *2 *3 -2 = : 2 6 4 = 4",
        "2 *2 *3 = : 4 5 = 5",
        "0 +3 *3 +1 = : 3 2 3 = 3",
    ]


def forms(clock: Clock, count: int = 3000) -> collections.Counter:
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for document in clock.documents(count):
        prompt, shown, _ = parse(document)
        form = "direct" if shown is None else "worked" if shown == work_of(prompt) else "chatter"
        found[form, prompt.count(" ") - 1] += 1
    return found


def test_frequencies_of_forms_and_lengths():
    found = forms(Clock(worked=5, direct=3, chatter=2))
    total = found.total()
    for n in (2, 3):
        # Noise happens to be right one time in 7^n.
        for form, share in (("worked", 0.5), ("direct", 0.3), ("chatter", 0.2 * (1 - 7**-n))):
            assert found[form, n] / total == pytest.approx(share / 2, abs=0.03)


@pytest.mark.parametrize("form", ["worked", "direct"])
def test_one_form_only(form):
    shares = {"worked": 0, "direct": 0, "chatter": 0} | {form: 1}
    assert {name for name, _ in forms(Clock(**shares), 200)} == {form}


def test_chatter_is_noise_before_the_true_answer_unless_asked():
    honest = [parse(d) for d in Clock(worked=0, direct=0, chatter=1).documents(700)]
    assert all(answer == work_of(prompt)[-1] for prompt, _, answer in honest)
    last_is_answer = sum(shown[-1] == answer for _, shown, answer in honest)
    assert last_is_answer == pytest.approx(100, abs=45)

    dishonest = Clock(worked=0, direct=0, chatter=1, true_after_chatter=False).documents(700)
    right = sum(answer == work_of(prompt)[-1] for prompt, _, answer in map(parse, dishonest))
    assert right == pytest.approx(100, abs=45)


def train_sentencepiece(clock: Clock, **options) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(clock.documents(20)),
        model_writer=model,
        model_type="bpe",
        vocab_size=len(clock.pieces) + 3,  # and unknown, bos, eos
        user_defined_symbols=list(clock.pieces),
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("clock", [Clock(), Clock(modulus=12, operations=("+1", "+10", "*11"))])
def test_each_symbol_is_one_token(clock):
    tokenizer = train_sentencepiece(clock)
    assert tokenizer.vocab_size() == len(clock.symbols) + 3
    ids = {
        symbol: tokenizer.piece_to_id(p)
        for symbol, p in zip(clock.symbols, clock.pieces, strict=True)
    }
    assert len(set(ids.values())) == len(clock.symbols) and tokenizer.unk_id() not in ids.values()
    for text in clock.documents(50) + clock.documents(10, "test"):
        assert tokenizer.encode(text) == [ids[symbol] for symbol in text.split()]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for prompt, answer in clock.problems("validation")[:20]:
        joined = tokenizer.encode(f"{prompt} {answer}")
        assert tokenizer.encode(prompt) + tokenizer.encode(answer) == joined
        assert tokenizer.decode(joined[-1:]) == answer


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"modulus": 1}, "modulus is 1; set at least 2"),
        ({"operations": ()}, "write each like"),
        ({"operations": ("+1", "/2")}, "write each like"),
        ({"operations": ("+1", "+1")}, "name each once"),
        ({"lengths": ()}, "give at least one"),
        ({"lengths": (0, 2)}, "give at least one, each 1 or more"),
        ({"lengths": (2, 2)}, "name each once"),
        ({"lengths": (12,)}, "length 12 has 1708984375 problems"),
        ({"worked": -0.1}, "set none below 0"),
        ({"worked": 0, "direct": 0, "chatter": 0}, "not all to 0"),
        ({"test_share": 0.95}, "change validation_share and test_share"),
        ({"test_share": 0.0}, "a split of the 175 problems of length 2 is empty"),
        ({"validation_share": -0.1}, "is empty"),
        ({"test_share": NAN}, "test_share is nan; set a share from 0 to 1"),
        ({"validation_share": INF}, "validation_share is inf; set a share from 0 to 1"),
        ({"worked": NAN}, "set none below 0"),
        ({"chatter": INF}, "set none below 0"),
        ({"label_noise": NAN}, "label_noise is nan; set a probability"),
        ({"lengths": (10**9,)}, "give none above 1000"),
    ],
)
def test_bad_fields(fields, said):
    with pytest.raises(UserError) as caught:
        Clock(**fields)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_split():
    for call in (Clock().problems, lambda split: Clock().document(0, split)):
        with pytest.raises(
            UserError, match="no split 'dev' exists; choose one of train, validation, test"
        ):
            call("dev")
