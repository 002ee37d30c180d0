"""The steps that are measured: those for which times of the published PyTorch code are known."""

from __future__ import annotations

from typing import Any

SHAPES = {
    # model fields, sequences, tokens
    "A": ((1024, 256, 4, 4, 2, 64, 688), 2, 128),
    "B": ((4096, 512, 8, 8, 4, 64, 1376), 1, 256),
}
# By stage; 0 is a plain step, 4 thought-free fine-tuning.
THOUGHTS = {"1": (16, 8), "2": (12, 4), "3": (8, 4)}
NAMES = {"0": "plain", "1": "16/8", "2": "12/4", "3": "8/4", "4": "NTP"}
RATIONALES = 2
COMPUTE: dict[str, Any] = {"remat": "elementwise", "vocab_chunk": 0, "position_chunk": 16}

# The published code with one thread and torch as installed, which multiplied matrices at 91 GFLOP/s,
# by shape and stage: process CPU seconds, and peak MB over start-up.
PUBLISHED_SECONDS = {
    "A": {"0": 0.156, "1": 8.679, "2": 4.449, "3": 2.735, "4": 0.175},
    "B": {"0": 1.153, "1": 69.331, "2": 31.466, "3": 20.515, "4": 1.275},
}
PUBLISHED_MB = {
    "A": {"1": 3134, "2": 1823, "3": 1257, "4": 147},
    "B": {"1": 12068, "2": 6977, "3": 4758, "4": 663},
}
