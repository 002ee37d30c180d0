"""The comparison with recordings of the published code: that it passes, and that it can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import parity
from tests.conftest import REPO

DATA = REPO / "tests" / "data" / "parity"
EVAL, TRAIN, NTP = "eval_n7_pad.npz", "train_n4_t3_p2.npz", "ntp_pad.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of the model and the named recordings, to damage."""

    def make(*recordings: str) -> Path:
        for name in ("config.json", "weights.safetensors", *recordings):
            shutil.copy(DATA / name, tmp_path)
        return tmp_path

    return make


def rewrite(path: Path, **changes: Any) -> None:
    """Replace arrays of a recording: by a value, by a function of the old one, or by nothing."""
    with np.load(path) as stored:
        arrays = dict(stored)
    for name, change in changes.items():
        if change is None:
            del arrays[name]
        else:
            arrays[name] = np.asarray(change(arrays[name]) if callable(change) else change)
    np.savez(path, **arrays)


def add(amount: float, *index: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] += amount
        return array

    return change


@pytest.mark.parametrize("name", [EVAL, TRAIN, NTP])
def test_recordings_of_the_published_code(folder: Callable[..., Path], name: str) -> None:
    (result,) = parity.compare_folder(folder(name))
    assert result.ok, str(result)


@pytest.mark.slow
def test_all_recordings(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (shared / "parity").is_dir():
        pytest.skip(f"no folder of recordings at {shared / 'parity'}")
    assert parity.main([str(shared / "parity")]) == 0
    recordings = sorted((shared / "parity").glob("*.npz"))
    assert len(capsys.readouterr().out.splitlines()) == len(recordings)


def test_as_a_program() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.parity", str(DATA)], cwd=REPO, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert [line[:4] for line in run.stdout.splitlines()] == ["ok  "] * 3


def large_gradient(array: np.ndarray) -> np.ndarray:
    """Moves the largest entry by 3 in 10,000."""
    array = array.copy()
    array.flat[np.argmax(np.abs(array))] *= 1.0003
    return array


@pytest.mark.parametrize(
    ("name", "array", "change"),
    [
        (EVAL, "thought_tokens", add(1, 0, 3, 2)),
        (EVAL, "base_logits", add(2e-4, 0, 5, 7)),
        (EVAL, "mixed_logits", add(-3e-4, 1, 2, 90)),
        (EVAL, "mixed_logits", add(np.nan, 0, 0, 0)),
        (TRAIN, "thought_tokens", add(-1, 3, 20, 0)),
        (TRAIN, "loss_nll", lambda loss: loss * 1.00003),
        (TRAIN, "loss_base", lambda loss: loss * 1.00003),
        (TRAIN, "loss_talk", add(1e-3, 1)),
        (TRAIN, "loss_policy", lambda loss: loss * 1.00003),
        (TRAIN, "loss_total", lambda loss: loss * 1.00003),
        (TRAIN, "grad_nll/model.layers.1.mlp.down_proj.weight", large_gradient),
        (TRAIN, "grad_nll/start_embedding", large_gradient),
        (TRAIN, "grad_policy/model.embed_tokens.weight", large_gradient),
        (TRAIN, "grad_policy/talk_head.0.4.weight", add(1e-3, 0, 0)),  # zero as recorded
        (TRAIN, "grad_policy/model.norm.weight", add(np.nan, 5)),
        (TRAIN, "grad_nll/model.norm.weight", lambda gradient: gradient[None]),
        (TRAIN, "grad_nll/lm_head.bias", np.zeros(99)),  # a parameter that we do not have
        (NTP, "logits", add(2e-4, 1, 1, 1)),
        (NTP, "sampled_tokens", add(1, 0, 0)),
        (NTP, "labels_kl", add(0.5, 0, 2, 3)),
        (NTP, "loss_rm", lambda loss: loss * 0.99997),
        (NTP, "grad_policy/model.layers.0.self_attn.k_proj.weight", large_gradient),
    ],
)
def test_one_changed_number_is_found(
    folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    array: str,
    change: Any,
) -> None:
    path = folder(name)
    rewrite(path / name, **{array: change})
    assert parity.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL ") and "(!)" in out


@pytest.mark.parametrize("recording", [EVAL, TRAIN, NTP])
@pytest.mark.parametrize("tensor", ["model.layers.0.self_attn.o_proj.weight", "lm_head.weight"])
def test_one_changed_weight_is_found(
    folder: Callable[..., Path], tensor: str, recording: str
) -> None:
    path = folder(recording) / "weights.safetensors"
    save_file(_changed(load_file(path), tensor), path)
    assert parity.main([str(path.parent)]) == 1


@pytest.mark.parametrize(
    "tensor", ["talk_head.0.0.weight", "talk_head.0.2.bias", "start_embedding", "end_embedding"]
)
def test_one_changed_weight_of_the_thoughts_is_found(
    folder: Callable[..., Path], tensor: str
) -> None:
    path = folder(EVAL, TRAIN) / "weights.safetensors"
    save_file(_changed(load_file(path), tensor), path)
    assert [result.ok for result in parity.compare_folder(path.parent)] == [False, False]


def _changed(weights: dict[str, np.ndarray], tensor: str) -> dict[str, np.ndarray]:
    """The first row, shifted by a fifth of the tensor's largest entry."""
    changed = weights[tensor].copy()
    changed[:1] += 0.2 * np.abs(changed).max()
    return weights | {tensor: changed}


@pytest.mark.parametrize("arguments", [[], ["no/such/folder"], [str(REPO / "tests")], ["a", "b"]])
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert parity.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: python -m tests.parity DIR") and not captured.out


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def drop_tensor(path: Path) -> None:
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        fields = json.loads(path.read_text()) | changes
        fields = {name: value for name, value in fields.items() if value is not None}
        path.write_text(json.dumps(fields))

    return edit


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("weights.safetensors", lambda path: path.unlink(), "weights.safetensors is missing"),
        ("weights.safetensors", truncate, "weights.safetensors cannot be read"),
        ("weights.safetensors", drop_tensor, "lacks 'model.norm.weight'"),
        ("config.json", lambda path: path.write_text("{"), "config.json cannot be read"),
        ("config.json", lambda path: path.write_text("3"), "config.json cannot be read"),
        ("config.json", edit_config(hidden_size=None), "config.json lacks hidden_size"),
        ("config.json", edit_config(num_key_value_heads=3), "do not fit"),
        ("config.json", edit_config(vocab_size=98), "base_logits has shape (2, 24, 99)"),
        (EVAL, truncate, f"{EVAL} cannot be read"),
        (EVAL, lambda path: path.write_bytes(b"numbers"), f"{EVAL} cannot be read"),
        (EVAL, lambda path: path.unlink(), "no eval_n*.npz, train_n*.npz or ntp*.npz"),
        (EVAL, lambda path: rewrite(path, mixed_logits=None), "lacks mixed_logits"),
        (EVAL, lambda path: rewrite(path, n_ahead=3), "n_ahead is 3"),
        (EVAL, lambda path: rewrite(path, n_ahead=8), "thought_tokens has shape (2, 24, 4)"),
        (EVAL, lambda path: rewrite(path, input_ids=np.zeros(24)), "input_ids has 1 axes"),
    ],
)
def test_what_cannot_be_compared_is_named_in_one_line(
    folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    file: str,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    path = folder(EVAL)
    damage(path / file)
    assert parity.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out
