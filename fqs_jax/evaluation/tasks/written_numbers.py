"""Numbers as people and models write them: with separators, currency, LaTeX, fractions and words.

`simplified` brings a text's many spellings down to a few. `NUMBER` finds the numbers in such a text, and
`value` gives the value of one. Both take time in proportion to the text, whatever is in it.

A comma before three digits separates thousands and a dot comes before decimals, as in English; "1.234,50"
and "1.234.567" can only be European, and are read so.
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from decimal import Decimal

_SPACE = "\u202f"  # in a simplified text: a space that does not part words, as in "1 234"
_SPACES = "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_MINUSES = "\u2212\u2012\u2013\ufe63\uff0d"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_GROUPED = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d|,\d)",
    r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?(?!\d|,\d)",  # Indian: 12,34,567
    r"\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d|[.,]\d)",  # European, with decimals
    r"\d{1,3}(?:\.\d{3}){2,}(?!\d|[.,]\d)",
    rf"\d{{1,3}}(?:{_SPACE}\d{{3}})+(?:[.,]\d{{1,2}})?(?![\d{_SPACE}]|[.,]\d)",
    r"\d{1,3}(?:['\u2019]\d{3})+(?:\.\d+)?(?!\d)",  # Swiss
    r"\d+(?:_\d{3})+(?!\d)",  # as in programs
)
_PLAIN = r"\d+(?:\.\d+)?|\.\d+"
# Groups begin a number. Otherwise a long row of groups that is no number would be read again from each.
_GROUPS_BEGIN = rf"(?<!\d)(?<!\d[,.'\u2019_{_SPACE}])"
_AMOUNT = f"(?:{_GROUPS_BEGIN}(?:{'|'.join(_GROUPED)})|{_PLAIN})"
_SIGNS = r"[$\u20ac\u00a3\u00a5\u20b9]"  # of currencies
_POWERS = {
    "hundred": 2,
    "thousand": 3,
    "lakh": 5,
    "million": 6,
    "crore": 7,
    "billion": 9,
    "trillion": 12,
}
_SHORT = {
    "k": 3,
    "K": 3,
    "M": 6,
    "mn": 6,
    "B": 9,
    "bn": 9,
    "T": 12,
}  # "$5M"; "5k" without a sign too
# "10 minus 5" is a subtraction; behind these the word is a sign.
_MINUS_WORD = (
    r"(?:(?:^|(?<=[=:({,*#>])|(?<=\b(?:is|be)\s)|(?<=\b(?:are|was)\s)|(?<=\bequals\s))[^\S\n]*minus"
    r"|\bnegative)\s+"
)
NUMBER = re.compile(
    # A hyphen between two numbers or words is no minus sign: "10-3" does not contain -3. Nor is one that
    # begins a line of a list, "- 3 hats". Behind "^" is no number of its own.
    rf"(?P<minus>{_MINUS_WORD}|(?<![\w)\].^])-(?!(?<=^-)\s))?(?<![\^])(?<!\^-)(?P<sign>{_SIGNS})?\s?"
    rf"(?P<inner>(?<={_SIGNS})-|(?<={_SIGNS}\s)-)?"
    rf"(?P<amount>{_AMOUNT})"
    rf"(?:(?:[\s{_SPACE}](?P<top>\d+))?\s?/\s?(?P<bottom>{_AMOUNT})(?![\d/])"
    r"|[eE](?P<exponent>[+-]?\d{1,3})(?![\dA-Za-z])"
    r"|\s?[*x]\s?10\^(?P<scale>-?\d{1,3})(?!\d)"
    r"|\^(?P<power>-?\d{1,3})(?![\d.])"
    rf"|(?P<words>(?:[\s-](?:{'|'.join(_POWERS)})s?\b)+)"
    rf"|\s?(?P<short>{'|'.join(_SHORT)})\b)?",
    re.MULTILINE,
)


def simplified(text: str) -> str:
    """The text in ASCII digits, with one spelling of minus, spaces, fractions, powers and products.

    LaTeX marks that only set digits apart, as in "9{,}500" and "9\\,500", become what they show.
    """
    text = "".join(map(_simple_character, text))
    text = re.sub(r"\\(?:left|right|displaystyle|!)", "", text)
    text = re.sub(r"\\([$%#&_])", r"\1", text)
    text = re.sub(r"(?:\\text)?\{([,.-])\}", r"\1", text)
    thin = r"(?:\\[,;: ]|\{\\[,;: ]\}|\\thinspace|~|\{\})"
    text = re.sub(rf"(?<=\d)\s?{thin}\s?(?=\d)", _SPACE, text)
    text = re.sub(r"\\(?:times|cdot)\b\s?|[\u00d7\u00b7\u22c5\u2219]", "*", text)
    text = re.sub(r"(?<=\d)\*\*(?=-?\d)", "^", text)
    text = re.sub(r"\^\s?\{\s?(-?\d+)\s?\}", r"^\1", text)
    part = r"\{([-$\d.,\s'\u202f]{1,40})\}"
    text = re.sub(rf"\\[dtc]?frac\s?{part}\s?{part}", _simple_fraction, text)
    return re.sub(r"\\[dtc]?frac\s?(\d)\s?(\d)", _simple_fraction, text)


def with_spaced_groups(text: str) -> str:
    """A simplified text in which common spaces, too, separate thousands: "1 234"."""
    return re.sub(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/])", lambda found: _spaced(found[0]), text)


def value(found: re.Match[str]) -> Decimal:
    """The value of a match of `NUMBER`."""
    with decimal.localcontext(prec=60, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
        number = _amount(found["amount"])
        if found["bottom"] and not _is_date(found):
            number = _fraction(number, found["top"], _amount(found["bottom"]))
        elif shift := found["exponent"] or found["scale"]:
            number = _shifted(number, int(shift))
        elif found["power"]:
            number = _power(number, int(found["power"]))
        elif found["words"]:
            words = re.findall("|".join(_POWERS), found["words"])
            number = _shifted(number, sum(_POWERS[word] for word in words))
        elif found["short"] and (found["sign"] or found["short"] in "kK"):
            number = _shifted(number, _SHORT[found["short"]])
    # Arithmetic would round a number of many digits.
    return number.copy_negate() if found["minus"] or found["inner"] else number


def _simple_character(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if character in _SPACES:
        return _SPACE
    if character in _MINUSES:
        return "-"
    if character in "\u066b\u066c":  # Arabic point and separator
        return "." if character == "\u066b" else ","
    kind, *parts = unicodedata.decomposition(character).split() or [""]
    if kind == "<fraction>":
        top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
        return f"\\frac{{{top}}}{{{bottom}}}" if bottom else f"{top}/"
    if kind == "<super>" and (plain := character.translate(_SUPERSCRIPTS)) != character:
        return f"^{plain}"
    if kind == "<wide>" and len(parts) == 1:
        return chr(int(parts[0], 16))
    if character == "\u2044":
        return "/"
    return "" if unicodedata.category(character) == "Cf" else character


def _simple_fraction(found: re.Match[str]) -> str:
    """LaTeX's fraction as "1/2", behind a whole number as " 1/2"."""
    top, bottom = found[1].strip(), found[2].strip()
    follows_digit = found.string[max(0, found.start() - 1) : found.start()].isdigit()
    return f"{' ' if follows_digit else ''}{top}/{bottom}"


def _spaced(text: str) -> str:
    """The groups of "1 234" joined; of "100 200", which may be two numbers, left apart."""
    return (
        text if len(text.split(" ")[0]) == 3 and text.count(" ") == 1 else text.replace(" ", _SPACE)
    )


def _amount(text: str) -> Decimal:
    if re.fullmatch(r"[^,]*[.\u202f]\d{3},\d{1,2}", text):  # a decimal comma behind groups
        text = text.replace(".", "").replace(",", ".")
    elif text.count(".") > 1:
        text = text.replace(".", "")
    return Decimal(re.sub(rf"[,_'\u2019{_SPACE}]", "", text))


def _is_date(found: re.Match[str]) -> bool:
    """True if the match is the end of "1/2/2030"."""
    start = found.start("amount")
    return found.string[max(0, start - 1) : start] == "/"


def _fraction(first: Decimal, top: str | None, bottom: Decimal) -> Decimal:
    """first/bottom, or "first top/bottom" for a mixed number; the first number if it is neither."""
    if not bottom:
        return first
    if top is None:
        return first / bottom
    return first + Decimal(top) / bottom if Decimal(top) < bottom else first


def _shifted(number: Decimal, places: int) -> Decimal:
    """The number times a power of ten, exactly."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # the number is finite
    return Decimal((sign, digits, exponent + places))


def _power(base: Decimal, exponent: int) -> Decimal:
    """The power, or the base itself where it would be huge or a fraction of no ten."""
    if base == 10:
        return _shifted(Decimal(1), exponent)
    if exponent < 0 or len(str(base)) * exponent > 60 or base != int(base):
        return base
    return Decimal(int(base) ** exponent)
