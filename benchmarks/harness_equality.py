"""Option texts scored by the lm-evaluation-harness and by `evaluate --scoring=text`, item by item.

    python -m benchmarks.harness_equality HF_DIR --task=csqa|piqa|siqa --task_file=FILE [--limit=N]

The harness runs its own evaluator with its own model (`hf`) and its own definition of the task, on the same
local file. CommonsenseQA, for which it has no such definition, gets that of ARC-Easy. Exit code 1 = a
log-likelihood differs by more than 2e-3, or a prediction differs. Needs the extra `eval`, and no network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from absl import app, flags

from fqs_jax.evaluation.tasks import (
    asking,
    commonsense_qa,
    items,
    option_texts,
    piqa,
    records,
    social_iqa,
)
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading

TASKS = {"csqa": commonsense_qa.CLOZE, "piqa": piqa.CLOZE, "siqa": social_iqa.CLOZE}
DEFINITIONS = {
    "csqa": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "siqa": "siqa/siqa.yaml",
}
TOLERANCE = 2e-3  # nats; the harness itself is 1.3e-3 from float64 on a solution of 71 tokens

_TASK = flags.DEFINE_enum("task", "csqa", list(TASKS), "Benchmark.")
_TASK_FILE = flags.DEFINE_string("task_file", "", "Its file in the original format.")
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first so many items.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Texts in a batch.", 1)


class Item(NamedTuple):
    """The log-likelihood of each option of an item; the number of the predicted one, and if it is right:
    by the sum, and divided by characters."""

    log_likelihoods: np.ndarray
    chosen: int
    chosen_norm: int
    acc: float
    acc_norm: float


def harness(
    folder: str, files: Mapping[str, str], limit: int | None, batch_size: int
) -> dict[str, list[Item]]:
    """The items of each task as the harness's own model scores them.

    Args:
      files: the file of each task.
    """
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    options = {"dtype": "float32", "device": "cpu", "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as place:
        tasks = []
        for task, file in files.items():
            data = Path(place, f"{task}.jsonl")
            documents = _documents(task, file)[:limit]
            data.write_text("".join(json.dumps(document) + "\n" for document in documents))
            tasks.append(ConfigurableTask(config=_definition(task, data)))
        done = lm_eval.simple_evaluate(
            model=HFLM(pretrained=folder, **options),
            tasks=tasks,
            bootstrap_iters=0,
            log_samples=True,
        )
    return {task: _items(done["samples"][task]) for task in files}


def _items(samples: list[dict[str, Any]]) -> list[Item]:
    found = []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        sums = np.array([answer[0] for answer in sample["filtered_resps"]], float)
        # The second argument of a request is the option behind a blank, which is not counted.
        characters = [len(option) - 1 for _, option in sample["arguments"]]
        chosen, norm = int(sums.argmax()), int((sums / characters).argmax())
        found.append(Item(sums, chosen, norm, sample["acc"], sample["acc_norm"]))
    return found


def ours(loaded: Loaded, task: str, file: str, limit: int | None, batch_size: int) -> list[Item]:
    """The items as `evaluate` scores them."""
    asked = items.read(TASKS[task], file, limit=limit)
    settings = asking.Settings(batch_size=batch_size)
    found = option_texts.evaluate(loaded, asked, settings).plain
    sums_NxA, norm_NxA = (part.log_probs_NxRxDxA[:, 0, 0] for part in found[:2])
    chosen = zip(sums_NxA.argmax(-1), norm_NxA.argmax(-1), strict=True)
    right = zip(*(part.all_right()[:, 0] for part in found[:2]), strict=True)
    return [
        Item(sums_NxA[n, : len(item.options)], *options, *correct)
        for n, (item, options, correct) in enumerate(zip(asked, chosen, right, strict=True))
    ]


def _definition(task: str, data: Path) -> dict[str, Any]:
    """The harness's own task, for a local file, with both metrics."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).with_name("tasks").joinpath(DEFINITIONS[task]).read_text()
    splits = {"training_split": None, "validation_split": None, "test_split": "test"}
    source = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent)},
    }
    metrics = [{"metric": name} for name in ("acc", "acc_norm")]
    definition: dict[str, Any] = yaml.safe_load(text)
    return definition | source | splits | {"task": task, "metric_list": metrics}


def _documents(task: str, file: str) -> list[dict[str, Any]]:
    """The records of an original file in the layout of the hub, which the harness reads."""
    path = Path(file)
    found = [json.loads(line) for _, line in records.numbered_lines(path)]
    if task == "csqa":
        return [_hub_csqa(record) for record in found]
    labels = path.with_name(f"{path.stem}-labels.lst").read_text().split()
    numbers = [int(label) if task == "piqa" else label for label in labels]
    return [record | {"label": label} for record, label in zip(found, numbers, strict=True)]


def _hub_csqa(record: dict[str, Any]) -> dict[str, Any]:
    options = record["question"]["choices"]
    return {
        "question": record["question"]["stem"],
        "choices": {name: [option[name] for option in options] for name in ("label", "text")},
        "answerKey": record["answerKey"],
    }


def compare(theirs: Sequence[Item], found: Sequence[Item]) -> tuple[float, int]:
    """The greatest difference of a log-likelihood, and how many items have another prediction."""
    pairs = list(zip(theirs, found, strict=True))
    worst = max(np.abs(a.log_likelihoods - b.log_likelihoods).max() for a, b in pairs)
    return float(worst), sum(a[1:] != b[1:] for a, b in pairs)


def main(argv: Sequence[str]) -> None:
    task, file, size = _TASK.value, _TASK_FILE.value, (_LIMIT.value, _BATCH.value)
    found = ours(loading.load(argv[1]), task, file, *size)
    theirs = harness(argv[1], {task: file}, *size)[task]
    worst, other = compare(theirs, found)
    for name, part in (("harness", theirs), ("fqs_jax", found)):
        acc, norm = np.mean([[item.acc, item.acc_norm] for item in part], axis=0)
        print(f"{name}: acc {acc:.4f}, acc_norm {norm:.4f}")
    print(
        f"{task}: {len(found)} items, {other} with another prediction, "
        f"log-likelihoods differ by {worst:.1e} at most"
    )
    sys.exit(1 if other or worst > TOLERANCE else 0)


if __name__ == "__main__":
    app.run(main)
