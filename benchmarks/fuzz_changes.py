"""Random changes of files: what benchmarks/fuzz.py breaks small valid inputs with."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from hypothesis import strategies as st

# Imported by the worker's Python path only if an input makes a reader import it.
PAYLOAD = "fuzz_payload"


class Change(NamedTuple):
    """One change of a file.

    Attributes:
      place: where in the file, or which value of its JSON, from 0 to 1.
      how: name of the change.
      value: bytes, a length or a JSON value, as the change needs it.
    """

    place: float
    how: str
    value: Any


def changes() -> st.SearchStrategy[list[Change]]:
    """One to three changes of a file: of its bytes, or of a value of its JSON."""
    place = st.floats(0, 1)
    odd = st.sampled_from(
        [
            b"\0" * 8,
            b"\xff" * 8,
            b"\xff" * 7 + b"\x7f",
            b"\0\0\0\x80",
            b"\n",
            b"[" * 5000,
            b"\xd8\x3d",
        ]
    )
    length = st.sampled_from([1, 2, 8, 100, 10_000])
    names = st.sampled_from(
        [
            "../../x",
            "/etc/passwd",
            "",
            "\x1b[2J",
            "\ud800",
            "a\0b",
            "x" * 5000,
            f"{PAYLOAD}.Payload",
        ]
    )
    numbers = st.sampled_from(
        [-1, 0, 1, 2**31, 2**32, 2**63, 10**9, 10**400, 1e308, 0.1, -0.0, math.nan, math.inf]
    )
    scalars = st.one_of(st.none(), st.booleans(), numbers, names)
    nested = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    )
    change = st.one_of(
        st.builds(Change, place, st.just("overwrite"), odd | st.binary(min_size=1, max_size=8)),
        st.builds(Change, place, st.just("insert"), odd),
        st.builds(Change, place, st.just("delete"), length),
        st.builds(Change, place, st.just("repeat"), length),
        st.builds(Change, place, st.just("truncate"), st.none()),
        st.builds(Change, place, st.just("zeros to the end"), st.none()),
        st.builds(Change, place, st.just("json"), nested),
        st.builds(Change, place, st.just("drop from json"), st.none()),
    )
    return st.lists(change, min_size=1, max_size=3)


def apply(data: bytes, change: Change) -> bytes:
    """The content of a file after a change. A change of JSON leaves other files as they are."""
    if change.how in ("json", "drop from json"):
        return _change_json(data, change)
    at = int(change.place * len(data))
    if change.how == "overwrite":
        return data[:at] + change.value + data[at + len(change.value) :]
    if change.how == "insert":
        return data[:at] + change.value + data[at:]
    if change.how == "delete":
        return data[:at] + data[at + change.value :]
    if change.how == "repeat":
        return data[:at] + data[at : at + change.value] * 2 + data[at + change.value :]
    if change.how == "truncate":
        return data[:at]
    return data[:at] + b"\0" * (len(data) - at)


def _change_json(data: bytes, change: Change) -> bytes:
    """Change one value of a JSON file, or of the header of a safetensors file."""
    start, end = 0, len(data)
    if not data.startswith(b"{"):
        start, end = 8, 8 + int.from_bytes(data[:8], "little")
    try:
        value = json.loads(data[start:end].splitlines()[0] if b"}\n{" in data else data[start:end])
    except (ValueError, IndexError, RecursionError):
        return data
    slots = list(_slots(value))
    if not slots:
        return data
    holder, key = slots[min(int(change.place * len(slots)), len(slots) - 1)]
    if change.how == "json":
        holder[key] = change.value
    else:
        del holder[key]
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if start:
        return len(text).to_bytes(8, "little") + text + data[end:]
    return text + b"\n" + b"".join(data.splitlines(keepends=True)[1:]) if b"}\n{" in data else text


def _slots(value: Any) -> Any:
    """Every (list or dict, index or key) below a JSON value; a number or a text has none."""
    if not isinstance(value, dict | list):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        yield from _slots(inner)
