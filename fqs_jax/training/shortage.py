"""Errors of a training step that needs more memory than a device has: they name what would need less."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.model.lora import TARGETS, Lora
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime import device_memory
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.training import memory
from fqs_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that lowers the memory of a step.

    Attributes:
      flag: its name on the command line.
      values: values to try, the mildest first.
      apply: the recipe with a value; None where it has no effect.
    """

    flag: str
    values: tuple[Any, ...]
    apply: Callable[[Recipe, Any], Recipe | None]


def _compute(name: str) -> Callable[[Recipe, Any], Recipe]:
    """Sets a field of `recipe.model`."""
    return lambda recipe, value: dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, **{name: value})
    )


def _microbatches(recipe: Recipe, parts: int) -> Recipe | None:
    divides = recipe.batch_size % parts == 0 and parts > recipe.microbatches
    return dataclasses.replace(recipe, microbatches=parts) if divides else None


def _fraction(recipe: Recipe, share: float) -> Recipe | None:
    own = recipe.objective
    if not isinstance(own, QuietStarConfig) or share >= own.position_fraction:
        return None
    return dataclasses.replace(recipe, objective=dataclasses.replace(own, position_fraction=share))


def _adapters(recipe: Recipe, rank: int) -> Recipe | None:
    """The recipe with adapters of every kernel, as the default of `lora.targets` is."""
    if recipe.lora is not None:
        return None
    return dataclasses.replace(recipe, lora=Lora(rank, rank, tuple(TARGETS)))


# Those that change only the time of a step come first; the last three change the training.
SETTINGS = (
    Setting("compute.position_chunk", (64, 16, 4), _compute("position_chunk")),
    Setting("compute.vocab_chunk", (2048, 256), _compute("vocab_chunk")),
    Setting("microbatches", (2, 4, 8, 16, 32, 64), _microbatches),
    Setting("compute.remat", ("full",), _compute("remat")),
    Setting("thought.position_fraction", (0.5, 0.25, 0.125), _fraction),
    Setting("compute.param_dtype", ("bfloat16",), _compute("param_dtype")),
    Setting("lora.rank", (16,), _adapters),
)


def changes(recipe: Recipe, mesh: Mesh, room: int, needed: int | None = None) -> list[str]:
    """Settings that lower the memory of a step, each with the estimated peak that it leads to.

    Of each setting the mildest value that fits is named, or else the one that needs least. The last
    entry has all of them together if none is enough alone.

    Args:
      room: bytes of a device.
      needed: the compiler's peak of the recipe; None = unknown. What the estimates give beside
        the state is scaled by what the compiler found for this recipe.
    """
    now = memory.estimate(recipe, mesh)
    scale = 1.0 if needed is None else max(0, needed - now.state) / max(1, now.peak - now.state)

    def peak(variant: Recipe) -> int:
        found = memory.estimate(variant, mesh)
        return round(found.state + scale * (found.peak - found.state))

    lines, together, least = [], recipe, peak(recipe)
    fits_alone = False
    for setting in SETTINGS:
        best: tuple[int, Any, Recipe] | None = None
        for value in setting.values:
            variant = _allowed(setting.apply(recipe, value), mesh)
            if variant is None or (size := peak(variant)) >= (best[0] if best else least):
                continue
            best = size, value, variant
            if size <= room:
                break
        if best is None:
            continue
        size, value, _ = best
        fits_alone |= size <= room
        lines.append(f"--config.{setting.flag}={value} ({_gib(size)})")
        together = _allowed(setting.apply(together, value), mesh) or together
    if len(lines) > 1 and not fits_alone:
        lines.append(f"all together ({_gib(peak(together))})")
    return lines


def _allowed(recipe: Recipe | None, mesh: Mesh) -> Recipe | None:
    """The recipe if its rows can be divided among the devices."""
    if recipe is not None:
        with contextlib.suppress(UserError):
            step_lib.split_rows(recipe, mesh)
            return recipe
    return None


def sentence(recipe: Recipe, mesh: Mesh, room: int, needed: int) -> str:
    """One sentence for a step whose peak is more than a device has, with what would make it fit."""
    ways = _ways(changes(recipe, mesh, room, needed))
    return f"{recipe.stage} needs {_gib(needed)} of a device that has {_gib(room)}; {ways}"


def check_state(recipe: Recipe, mesh: Mesh, state: Any) -> None:
    """Refuse a stage whose state alone the devices of this process have no memory for.

    Args:
      state: shapes with their placement, `step.Program.state`.

    Raises:
      UserError: names settings that would make the step fit.
    """
    needed, room = device_memory.of_arrays(state), device_memory.free(mesh.local_devices[0])
    if room is not None and needed > room:
        raise UserError(
            f"the parameters and the optimizer state of {recipe.stage} alone need {_gib(needed)} of a "
            f"device that has {_gib(room)}; {_ways(changes(recipe, mesh, room))}"
        )


def check_program(recipe: Recipe, mesh: Mesh, program: Any) -> None:
    """Refuse a compiled step that the devices of this process have no memory for; its state exists.

    Raises:
      UserError: names settings that would make it fit.
    """
    used = device_memory.of_program(program, mesh.devices.flat[0].platform)
    free = device_memory.free(mesh.local_devices[0])
    if used is not None and free is not None and used.peak - used.arguments > free:
        raise UserError(sentence(recipe, mesh, free + used.arguments, used.peak))


@contextlib.contextmanager
def explained(recipe: Recipe, mesh: Mesh) -> Iterator[None]:
    """Turn an error about memory into one sentence that says what would need less.

    Raises:
      UserError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not device_memory.is_exhausted(error):
            raise
        reason = printable(str(error).strip().partition("\n")[0], 200)
        needed = memory.estimate(recipe, mesh).peak
        raise UserError(
            f"{recipe.stage} ran out of memory{f' ({reason})' if reason else ''}; by estimate it needs "
            f"{_gib(needed)} of a device; {_ways(changes(recipe, mesh, room=0))}"
        ) from error


def _ways(found: list[str]) -> str:
    if not found:
        return "no setting lowers it much: divide it among more devices with --config.mesh.fsdp"
    return f"settings that lower it, with the peak by estimate: {'; '.join(found)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"
