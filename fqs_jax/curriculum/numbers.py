"""The range of every number in a config, in one table; limits that depend on other fields are elsewhere.

NaN and infinities are in no range. Numbers that a device would round to 0 or to infinity are refused
too, because float32 has less room than Python.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from fqs_jax.runtime.errors import UserError, printable

_MOST = 2**31 - 1  # devices count in int32
_LARGEST = 3e38  # float32 ends there
# Logits are divided by temperatures. A smaller one would make them infinite.
_COLDEST = 1e-6


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may have.

    Attributes:
      least, most: the smallest and the largest value.
      above: `least` itself is excluded. below: `most` itself is excluded.
      whole: whole numbers only.
      or_zero: 0 is allowed too.
    """

    least: float = -_LARGEST
    most: float = _LARGEST
    above: bool = False
    below: bool = False
    whole: bool = False
    or_zero: bool = False

    def problem(self, value: Any) -> str | None:
        """The values to set instead of a wrong one, in words; None if it is allowed."""
        kind = numbers.Integral if self.whole else numbers.Real
        noun = "a whole number" if self.whole else "a number"
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"set {noun}"
        number: Any = value
        if number == 0 and self.or_zero:
            return None
        too_large = not (number < self.most if self.below else number <= self.most)  # also NaN
        too_small = not (number > self.least if self.above else number >= self.least)
        if not too_large and not too_small:
            return None
        return f"set {self._bounds(with_limit=number > self.most)}"

    def _bounds(self, with_limit: bool) -> str:
        """The range in words, with the limit of the devices only if it matters."""
        limited = self.most in (_MOST, _LARGEST, math.inf)
        most = f"{self.most}" if self.whole else f"{self.most:g}"
        if not limited and not self.above and not self.below:
            return f"{self.least:g} to {most}"
        parts = []
        if self.least > -_LARGEST:
            zero = "0, or " if self.or_zero else ""
            parts.append(f"{zero}{'above' if self.above else 'at least'} {self.least:g}")
        if not limited or with_limit:
            parts.append(f"{'below' if self.below else 'at most'} {most}")
        return ", ".join(parts) or f"at least {self.least:g}"


ANY = Range()
POSITIVE = Range(0, above=True)
AT_LEAST_0 = Range(0)
SHARE = Range(0, 1)
TEMPERATURE = Range(_COLDEST)


def whole(least: int, most: float = _MOST) -> Range:
    """Whole numbers from `least` on."""
    return Range(least, most, whole=True)


# By dotted name; * stands for any part of a name. The first match counts.
RANGES: dict[str, Range] = {
    "seed": whole(0, math.inf),
    "batch_size": whole(1),
    "microbatches": whole(1),
    "held_out.every": whole(0),
    "held_out.rows": whole(1),
    "log_every": whole(1),
    "checkpoint_every": whole(1),
    "checkpoint_minutes": AT_LEAST_0,
    "keep_checkpoints": whole(1),
    "max_bad_steps": whole(1),
    "mesh.*": whole(-1),
    "model.rope_theta": POSITIVE,
    "model.norm_eps": POSITIVE,
    "compute.vocab_chunk": whole(0),
    "compute.position_chunk": whole(0),
    "data.seq_len": whole(2),
    "data.workers": whole(0),
    "data.tokenizer_pieces": whole(0),
    "data.num_documents": whole(0),
    "data.*.worked": AT_LEAST_0,
    "data.*.direct": AT_LEAST_0,
    "data.*.chatter": AT_LEAST_0,
    "data.*.unanswered": AT_LEAST_0,
    "data.*.label_noise": SHARE,
    "data.*.answered_share": SHARE,
    "data.*.validation_share": SHARE,
    "data.*.test_share": SHARE,
    "data.*.modulus": whole(1),
    "data.*.size": whole(1),
    "data.*.functions": whole(1),
    "optimizer.beta1": Range(0, 1, below=True),
    "optimizer.beta2": Range(0, 1, below=True),
    "optimizer.eps": Range(1e-38),
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.warmup_steps": whole(0),
    "optimizer.decay_steps": whole(0),
    "optimizer.clip_norm": Range(1e-37),
    "optimizer.lr_scale.*": AT_LEAST_0,
    "lora.rank": whole(0),
    "lora.alpha": Range(1e-38),
    "thought.rationales": whole(1),
    "thought.mixing_bias": ANY,
    "thought.embedding_scale": Range(1e-38),
    "thought.temperature": Range(_COLDEST, or_zero=True),
    "thought.eval_temperature": Range(_COLDEST, or_zero=True),
    "thought.reinforce_temperature": TEMPERATURE,
    "thought.position_fraction": Range(0, 1, above=True),
    "quiet_star.base_weight": SHARE,
    "quiet_star.mixed_scale": AT_LEAST_0,
    "quiet_star.policy_weight": AT_LEAST_0,
    "quiet_star.post_thought_weight": AT_LEAST_0,
    "ntp.temperature": TEMPERATURE,
    "ntp.policy_weight": AT_LEAST_0,
    "distill.label_weight": SHARE,
    "distill.teacher_thoughts": whole(1),
    "distill.top_k": whole(0),
    "distill.group": whole(2),
    "stage_*.learning_rate": AT_LEAST_0,
    "stage_*.steps": whole(0),
    "stage_*.n_ahead": whole(0),  # the row's own check knows which stages think
    "stage_*.n_ahead_talk": whole(0),
}
# Fields that every config has.
_OPTIONAL = ("model", "distill", "lora", "held_out")  # sections
REQUIRED = tuple(name for name in RANGES if "*" not in name and name.split(".")[0] not in _OPTIONAL)


def check(config: ml_collections.ConfigDict, where: str = "") -> None:
    """Check every number of a config, or of some of its sections, that the table knows.

    Args:
      where: what the message begins with.

    Raises:
      UserError: a number is out of its range, or the field holds something else.
    """
    for name, value in _flat(config.to_dict()):
        bounds = _range(name)
        if bounds is not None and (problem := bounds.problem(value)):
            raise UserError(f"{where}{name} is {printable(repr(value), 100)}; {problem}")


def check_complete(config: ml_collections.ConfigDict, where: str = "") -> None:
    """Check that a config has all fields that the table requires, and the numbers in them.

    Args:
      where: what the message begins with.

    Raises:
      UserError: a field is missing, or as in `check`.
    """
    present = {name for name, _ in _flat(config.to_dict())}
    for name in REQUIRED:
        if name not in present:
            raise UserError(f"{where}{name} is missing; see configs/common.py for its default")
    check(config, where)


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from flatten_dict(dict(fields), sep=".").items()


def _range(name: str) -> Range | None:
    if name in RANGES:
        return RANGES[name]
    return next((bounds for pattern, bounds in RANGES.items() if fnmatchcase(name, pattern)), None)
