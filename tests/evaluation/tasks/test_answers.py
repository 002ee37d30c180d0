"""The number of a worked-out answer: read rightly, and as the released evaluation reads it."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.evaluation.tasks.answers import final_number, published_number


@pytest.mark.parametrize(
    "text, right, published",
    [
        ("Therefore, the answer (arabic numerals) is 18", 18, 18),
        ("The answer is 18.", 18, 18),
        ("The answer is $1,234.", 1234, 1234),
        ("It costs $12.50", Decimal("12.50"), 1250),  # the point is dropped
        ("The answer is 18. That is all.", 18, 1),  # "18. " is deleted, nothing is left
        ("5 hats. The answer is 18. Done.", 18, 5),  # ... or something else is
        ("1. He has 3. \n2. So 7", 7, 7),  # numbers of a list are deleted, as is the 3
        ("no number at all", None, 1),  # failing is 1
        ("so it is 7 ...", 7, 1),  # the dots are the last "number"
        ("-3", -3, -3),
        ("He owes -$5", -5, -5),
        ("He owes $-5", -5, -5),
        ("10-3=7", 7, 7),
        ("The answer is 10-3 = 7", 7, 7),
        ("The answer is 50%", 50, 50),
        ("We get \\boxed{42} and 17 more.", 42, 17),
        ("work 3+4\n#### 7", 7, 7),
        ("#### 7\nQ: What about 9?", 7, 9),
        ("is 8\nQuestion: And 9?", 8, 8),
        ("the answer is 4. No, the answer is 1,000,000 hats and 2 dogs", 1000000, 2),
        ("is 1,234, which is much", 1234, 1234),
        ("half: .5", Decimal("0.5"), 5),
        # What is announced ends with its sentence, or the part of it.
        ("The answer is 18. Let me check: 20 - 2 = 17.", 18, 17),
        ("The answer is 18, as 20 - 2 = 17", 18, 17),
        ("The answer is **18.** Check: x = 17", 18, 17),
        ("The answer is 18.Check: x = 17", 18, 17),
        ("The answer is 12.50. So x = 3", Decimal("12.50"), 3),
        ("The answer is, in total, 3 + 4 = 7. So x = 3", 7, 3),
        ("We get \\boxed{42} and x = 17", 42, 17),
        ("The answer is No. 5.", 5, 5),
        ("The answer is No. 5. So x = 7", 5, 7),
        ("The answer is:\n42 hats for 3", 42, 3),
        # A colon announces too, if a number follows.
        ("Answer: 42. That took 3 days.", 42, 3),
        ("The final answer: 42 apples for 3 people", 42, 3),
        ("**Answer:** 7 (out of 9)", 7, 9),
        ("**Answer**: -$7 of 9", -7, 9),
        ("Answer (in dollars): $7 of 9", 7, 9),
        ("Answer:\n7 of 9", 7, 9),
        ("Answer: 10 - 3 = 7. It took 2", 7, 2),
        ("Answer: He has 3 hats and 4 more. So 7", 7, 7),
        ("Answer: 3. No, the answer is 4 of 5", 4, 5),
    ],
)
def test_answers(text, right, published):
    assert final_number(text) == right
    assert published_number(text) == published


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_a_number(number):
    dollars = f"-${-number:,}" if number < 0 else f"${number:,}"
    for written in (f"{number}", f"{number:,}", dollars):
        for text in (
            f"the answer is {written}.",
            f"= {written}",
            f"2 and 3 make {written}",
            f"#### {written}\n",
            f"3 and more. The answer is {written}. So 5 it is not",
            *(
                f"{cue} {written}{rest}"
                for cue in ("the answer is", "Answer:", "**Final answer:**", "the answer: x =")
                for rest in (". So 9 - 2 = 7.", "! x = 7", "; x = 7", ", for 9 - 2 = 7", "\nx = 7")
            ),
        ):
            assert final_number(text) == number
        assert published_number(f"so it is {written}.") == number


@given(st.decimals(0, 10**6, places=2))
def test_decimals_are_kept(number):
    assert final_number(f"The answer is {number:,}.") == number
    assert final_number(f"Answer: {number:,}. So x = 3") == number
    assert published_number(f"so {number}") == int(number * 100)


@given(st.text(st.sampled_from("0123456789.,$-=# \nanswer is\u0663\u2212{}"), max_size=60))
def test_no_text_is_too_odd(text):
    found = final_number(text)
    assert found is None or found.is_finite()
    assert isinstance(published_number(text), int)


@given(st.text(max_size=80))
def test_without_digits_there_is_no_number(text):
    text = "".join(c for c in text if not c.isdecimal() and not c.isdigit())
    assert final_number(text) is None and published_number(text) == 1


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_announcing_wins_over_what_comes_after(answer, later):
    assert final_number(f"the answer is {answer}. I checked it {later} times") == answer
    assert published_number(f"the answer is {answer}. I checked it {later} times") == later
