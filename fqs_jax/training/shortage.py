"""What is said when a training step needs more memory than a device has, and what would need less."""

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
        lines.append(f"--config.{setting.flag}={value} ({size / GIB:.3g} GiB)")
        together = _allowed(setting.apply(together, value), mesh) or together
    if len(lines) > 1 and not fits_alone:
        lines.append(f"all together ({peak(together) / GIB:.3g} GiB)")
    return lines


def _allowed(recipe: Recipe | None, mesh: Mesh) -> Recipe | None:
    """The recipe if its rows can be divided among the devices."""
    if recipe is not None:
        with contextlib.suppress(UserError):
            step_lib.split_rows(recipe, mesh)
            return recipe
    return None


def sentence(recipe: Recipe, mesh: Mesh, room: int, needed: int) -> str:
    """One sentence for a step that needs more than a device has, with what would make it fit."""
    sizes = f"needs {needed / GIB:.3g} GiB of a device that has {room / GIB:.3g} GiB left"
    found = changes(recipe, mesh, room, needed)
    way = f"by estimate it needs, with {'; '.join(found)}" if found else "use more devices"
    return f"{recipe.stage} {sizes}; {way}"


def check_program(recipe: Recipe, mesh: Mesh, program: Any) -> None:
    """`check` of a compiled step whose arguments exist."""
    platform = mesh.devices.flat[0].platform
    if (needed := device_memory.of_program(program, platform)) is not None:
        check(recipe, mesh, needed.peak, existing=needed.arguments)


def check(recipe: Recipe, mesh: Mesh, peak: int, existing: int = 0) -> None:
    """Refuse a step that the devices of this process have no memory for.

    Args:
      peak: bytes that it needs of a device. existing: of these, bytes that are allocated already.

    Raises:
      UserError: names settings that would make it fit.
    """
    free = device_memory.free(mesh.local_devices[0])
    if free is not None and peak - existing > free:
        raise UserError(sentence(recipe, mesh, free + existing, peak))


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
        found = "; ".join(changes(recipe, mesh, room=0)) or "more devices"
        raise UserError(
            f"{recipe.stage} ran out of memory{f' ({reason})' if reason else ''}; by estimate it needs "
            f"{memory.estimate(recipe, mesh).peak / GIB:.3g} GiB of a device, and with {found}"
        ) from error
