"""The table that getting started shows, against one that was just printed.

    python tests/printed_table.py docs/getting-started.md OUTPUT_OF_EVALUATE

Needs no library, so that it runs before anything is installed. Numbers are the same in every run on one type
of processor, and those of another type are like those of another seed. So steps and FLOPs must always be
equal; if the first model's numbers are, every model's must be; and otherwise accuracies must lie within those
of the seeds in README, or near them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
TIME = "ms/token"  # differs between runs
NEAR = 0.05  # of accuracy: eight seeds do not show all that a seed may do


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first comparison in a text, by the names of the columns."""
    lines = [line for line in text.splitlines() if line.strip()[:1] in ("┃", "│")]
    cells = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]] if cells else []


def ranges(readme: str) -> dict[str, tuple[float, float]]:
    """The least and the highest accuracy over seeds, by model."""
    rows = re.findall(r"^\| ([\w-]+) \|.*\| (0\.\d+)\.\.(0\.\d+) \|", readme, re.MULTILINE)
    return {name: (float(least), float(most)) for name, least, most in rows}


def stale(page: str, printed: str, readme: str) -> list[str]:
    """What a page says and a program does not print any more; [] = nothing."""
    shown, found = table(page), table(printed)
    names = [row.get("model", "").split(" at ")[0] for row in shown]
    if not shown or names != [row.get("model", "").split(" at ")[0] for row in found]:
        return [f"the page has the models {names}, and a table of others was printed"]
    numbers = ("accuracy", "NLL", "easy", "middle", "hard")
    is_same_processor = all(shown[0][name] == found[0][name] for name in numbers)
    faults = []
    for ours, theirs in zip(shown, found, strict=True):
        checked = [name for name in ours if name != TIME]
        if not is_same_processor:
            checked = ["stage", "steps", "FLOPs/token"]
            least, most = ranges(readme).get(theirs["model"], (0.0, 1.0))
            accuracy = float(theirs["accuracy"].split()[0])
            if not least - NEAR <= accuracy <= most + NEAR:
                faults.append(
                    f"{theirs['model']}: accuracy {theirs['accuracy']}, in README {least}..{most}"
                )
        faults += [
            f"{ours['model']}: {name} is {ours[name]} on the page and {theirs.get(name)} now"
            for name in checked
            if ours[name] != theirs.get(name)
        ]
    return faults


if __name__ == "__main__":
    page, printed = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    sys.exit("\n".join(stale(page, printed, README.read_text(encoding="utf-8"))) or None)
