"""The number of a worked-out answer: read rightly, and as the released evaluation reads it."""

import time
import unicodedata
from decimal import Decimal
from fractions import Fraction

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
    assert published_number(text) == 1
    # "½" is a number too, for the reader that is not the published one.
    text = "".join(c for c in text if "<fraction>" not in unicodedata.decomposition(c))
    assert final_number(text) is None


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_announcing_wins_over_what_comes_after(answer, later):
    assert final_number(f"the answer is {answer}. I checked it {later} times") == answer
    assert published_number(f"the answer is {answer}. I checked it {later} times") == later


CUES = ("The answer is {}.", "Answer: {}", "#### {}", "So it is {}", "\\boxed{{{}}}", "**{}**")
SPACES = (
    "\u00a0",
    "\u2009",
    "\u202f",
    "\\,",
    "\\;",
    "\\ ",
    "~",
    "'",
    "\u2019",
    "_",
    "{,}",
    "\\!,\\!",
)
DIGITS = ("\uff10", "\u0660", "\u0966")  # zeros: full-width, Arabic, Devanagari


@given(st.integers(0, 10**13), st.sampled_from(SPACES), st.sampled_from(CUES), st.booleans())
def test_every_separator_of_thousands(number, separator, cue, negative):
    written = f"{number:,}".replace(",", separator)
    sign = "-" if negative else ""
    assert final_number(cue.format(sign + written)) == (-number if negative else number)
    if separator not in ("{,}", "\\!,\\!"):
        return
    assert final_number(cue.format(f"\\${written}.25")) == number + Decimal("0.25")


@given(st.integers(10**3, 10**13).filter(lambda n: not 10**5 <= n < 10**6))
def test_common_spaces_separate_thousands_of_an_announced_number(number):
    assert final_number(f"The answer is {number:,}.".replace(",", " ")) == number


def test_numbers_in_a_row_are_several():
    assert final_number("sizes 100 200 300") == 300
    assert final_number("The answer is 100 200") == 100
    assert final_number("The answer is 3, 400, 500") == 3


@given(st.integers(0, 10**9), st.sampled_from(DIGITS), st.sampled_from(CUES))
def test_digits_of_other_scripts(number, zero, cue):
    written = str(number).translate({ord("0") + i: chr(ord(zero) + i) for i in range(10)})
    assert final_number(cue.format(written)) == number


@given(st.integers(1, 10**11), st.sampled_from(CUES))
def test_indian_groups(number, cue):
    head, tail = divmod(number, 1000)
    groups = [f"{tail:03}"] if head else [str(tail)]
    while head:
        head, pair = divmod(head, 100)
        groups.insert(0, f"{pair:02}" if head else str(pair))
    assert final_number(cue.format(",".join(groups))) == number


@given(st.integers(-(10**6), 10**6), st.sampled_from("-\u2212\u2013\uff0d"), st.sampled_from(CUES))
def test_every_minus(number, minus, cue):
    for written in (f"{number}", f"${number}", f"{number}%", f"\\text{{{number}}}", f"{number} km"):
        assert final_number(cue.format(written.replace("-", minus))) == number


@given(
    st.integers(0, 99),
    st.integers(1, 99),
    st.sampled_from((1, 2, 4, 5, 8, 10, 20, 25, 50)),
    st.sampled_from(CUES),
)
def test_fractions(whole, top, bottom, cue):
    for written in (f"{top}/{bottom}", f"{top} / {bottom}", f"{top}\u2044{bottom}"):
        assert Fraction(final_number(cue.format(written))) == Fraction(top, bottom)
    for name in ("frac", "dfrac", "tfrac"):
        latex = f"\\{name}{{{top}}}{{{bottom}}}"
        assert Fraction(final_number(cue.format(latex))) == Fraction(top, bottom)
        if top < bottom:
            mixed = cue.format(f"{whole}{latex}")
            assert Fraction(final_number(mixed)) == whole + Fraction(top, bottom)


@given(st.integers(1, 9999), st.integers(0, 12), st.sampled_from(CUES))
def test_powers_of_ten(digits, places, cue):
    mantissa, value = Decimal(digits).scaleb(-2), Decimal(digits).scaleb(places - 2)
    for written in (
        f"{mantissa}e{places}",
        f"{mantissa}E+{places}",
        f"{mantissa} \\times 10^{places}",
        f"{mantissa} \\cdot 10^{{{places}}}",
        f"{mantissa}\u00d710^{places}",
        f"{mantissa} x 10^{places}",
    ):
        assert final_number(cue.format(written)) == value


@pytest.mark.parametrize(
    "text, number",
    [
        ("The answer is 2.5 million.", 2_500_000),
        ("The answer is 3 hundred thousand dollars.", 300_000),
        ("The answer is 4 lakh, or 0.4 million.", 400_000),
        ("It costs $2.5M", 2_500_000),
        ("She walked 10k steps", 10_000),
        ("a wire of 5M", 5),  # metres, or anything
        ("2 millionaires", 2),
        ("The answer is 10^3.", 1000),
        ("The answer is 2^{10}.", 1024),
        ("5\u00d710\u00b3", 5000),
        ("12 m^2", 12),
        ("12 m\u00b2", 12),
        ("\u00bd", Decimal("0.5")),
        ("2\u00bd cups", Decimal("2.5")),
        ("-\u00bd", Decimal("-0.5")),
        ("-2\u00bd", Decimal("-2.5")),
        ("\\boxed{-2\\frac12}", Decimal("-2.5")),
        ("The answer is minus 5.", -5),
        ("The answer is negative 5.", -5),
        ("10 minus 5", 5),
        ("Answer: minus 5 of 9", -5),
        ("- 5 hats", 5),  # of a list
        ("x = - 5", -5),
        ("The answer would be 18 apples, not 20.", 18),
        ("The answer should be 18. I took 20.", 18),
        ("The answer is not 5, but 6.", 6),
        ("The answer is not 5 but 6.", 6),
        ("18 instead of 20", 18),
        ("It isn't 5", 5),  # nothing else is there
        ("1.234,50 Euro", Decimal("1234.50")),
        ("1.234.567", 1234567),
        ("1.234", Decimal("1.234")),
        ("The answer is 5/0.", 5),
        ("\\boxed{\\frac12}", Decimal("0.5")),
        ("\\boxed{-\\frac{3}{4}}", Decimal("-0.75")),
        ("$\\boxed{x = 42\\%}$ of 17", 42),
        ("\\boxed{42^\\circ}", 42),
        ("The answer is \\(42\\) of 3", 42),
        ("<answer>42</answer> took 17", 42),
        ('{"answer": 42, "steps": 3}', 42),
        ("Answer: \u2248 42 of 3", 42),
        ("Answer: \\$42 of 3", 42),
        ("1" * 50, int("1" * 50)),
        ("-" + "1" * 50, -int("1" * 50)),
    ],
)
def test_ways_to_write_a_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    "part",
    [
        *("1,", "1 ", "not ", "9", "1/", "1_000", "111,", "111.", "111 ", "111'", "1.", "^1", "e1"),
        *("-", "{", "}", "$", " ", "\n", "=", "negative ", "minus ", "\\,", "\\frac{1", "\\frac{ "),
        *("answer", "answer ", "answer (", "answer:", "answer is ", "the answer is 1 ", "#### "),
        *("\\boxed{", "million ", "1 million ", "is ", "\u00bd", "\n ", ".)", "1\u202f", "\nQ"),
    ],
)
@pytest.mark.parametrize(
    "before, after", [("", ""), ("\\frac{", "x"), ("answer is ", "11"), ("1", ";")]
)
def test_long_texts_take_no_time(part, before, after):
    text = before + (part * 10_000)[:10_000] + after

    def seconds():
        start = time.process_time()
        final_number(text)
        published_number(text)
        return time.process_time() - start

    # A busy machine now and then charges a moment of its own to one try, but not to all.
    assert any(seconds() < 0.5 for _ in range(3))
