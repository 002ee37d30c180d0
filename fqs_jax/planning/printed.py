"""A plan as text: the verdict, and rows of (name, value) for a table."""

from __future__ import annotations

import dataclasses

from fqs_jax.planning.chips import CPU
from fqs_jax.planning.step_plan import MEASURED_OVER_ESTIMATE, Plan, Times, Utilisation
from fqs_jax.runtime.device_memory import GIB


def seconds(result: Plan) -> float:
    """Estimated seconds of a step; infinite if it could not be compiled."""
    return result.times.step if result.times else float("inf")


def rate(result: Plan) -> str:
    """Text tokens per second, by estimate."""
    return f"{result.text_tokens / seconds(result):,.0f}"


def verdict(result: Plan, changes: list[str]) -> str:
    """One line: whether the step fits, with its memory, and otherwise the changes to try."""
    sizes = f"{result.needed / GIB:.2f} of {result.chip.memory / GIB:.2f} GiB a device"
    if result.fits and not result.chip.memory_is_real:
        return f"fits ({result.needed / GIB:.2f} GiB a device; on CPUs this is indicative only)"
    if result.fits:
        return f"fits ({sizes}){condition(result)}"
    return f"does not fit ({sizes}); try, in this order: {'; '.join(changes)}"


def condition(result: Plan) -> str:
    """The variables to set so that a step which fits has its memory; empty if none are needed."""
    if not 0 < result.chip.default_memory < result.needed:
        return ""
    default = f"{result.chip.default_memory / GIB:.2f} GiB"
    return f" with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9; by default JAX takes {default}"


def parameters(result: Plan) -> str:
    """The number of parameters, and of the trained ones if they are not all."""
    text = f"{result.parameters:,} in {result.model.param_dtype}"
    if result.trained_parameters == result.parameters:
        return text
    return f"{text}; {result.trained_parameters:,} of them are trained"


def row_groups(result: Plan) -> str:
    """Groups of devices with their own rows, and the devices that repeat the work of others."""
    idle = result.devices - result.working_devices
    text = (
        f"{result.row_groups} groups of {result.mesh['tensor']} device(s), each with its own rows"
    )
    if idle:
        text += f"; {idle} devices repeat the work of others: use a larger batch, or mesh.tensor"
    return text


def batch(result: Plan) -> str:
    """Sequences and text tokens of a step."""
    parts = f" in {result.microbatches} microbatches" if result.microbatches > 1 else ""
    return (
        f"{result.batch_size} sequences, {result.text_tokens:,} tokens of text{parts}; "
        f"remat {result.model.remat}"
    )


def memory_rows(result: Plan) -> list[tuple[str, str]]:
    """Memory of one device, by kind."""
    limit = f"{result.chip.memory / GIB:.2f} GiB"
    if result.memory is None:
        return [
            ("memory", f"the compiler needs {result.needed / GIB:.2f} GiB, a device has {limit}")
        ]
    sizes = dataclasses.asdict(result.memory)
    rows = [(name, f"{sizes[name] / GIB:.3f} GiB") for name in sizes if name != "peak"]
    note = f"of {limit}" if result.chip.memory_is_real else "(CPU memory figures are indicative)"
    return [*rows, ("peak", f"{result.needed / GIB:.3f} GiB {note}")]


def flop_rows(result: Plan) -> list[tuple[str, str]]:
    """FLOPs of a text token, from shapes and from the program."""
    flops, tokens = result.flops, result.text_tokens
    again = flops.recomputed / flops.program
    rows = [
        ("model FLOPs", f"{flops.model / tokens:.4e} a text token, from shapes"),
        (
            "program FLOPs",
            f"{flops.program / tokens:.4e} a text token, {flops.program / flops.model:.3f} x the "
            "model's: matrix products, without recomputation",
        ),
        ("recomputed", f"{flops.recomputed / tokens:.4e} a text token, {again:.1%} on top"),
    ]
    if "flops" in result.compiler:
        counts = ", ".join(f"{name} {value:.3e}" for name, value in result.compiler.items())
        rows.append(("compiler counts", f"{counts} a device; it counts the body of a loop once"))
    return rows


def collective_rows(result: Plan) -> list[tuple[str, str]]:
    """Traffic of one device, by kind of collective."""
    if result.collectives is None:
        return [("links", "not counted; --links reads them from the compiled program")]
    return [
        (kind, f"{found.bytes / 1e9:.3f} GB over a device's links, {found.calls:,} calls")
        for kind, found in result.collectives.items()
    ]


def time_rows(result: Plan, utilisation: Utilisation) -> list[tuple[str, str]]:
    """Estimated seconds of a step by limit; none if it could not be compiled."""
    if (times := result.times) is None:
        return []
    links = (
        f"{times.links:.3g} s at {utilisation.links:.0%} of {result.chip.link_bandwidth:.3g} B/s"
    )
    return [
        ("compute", f"{times.compute:.3g} s at {utilisation.compute:.0%} of {result.chip.flops:.3g} FLOP/s"),
        *([] if result.collectives is None else [("links", links)]),
        (
            "memory traffic",
            f"at least {times.memory:.3g} s at {utilisation.memory:.0%} of "
            f"{result.chip.memory_bandwidth:.3g} B/s",
        ),
        ("estimated step", f"{times.step:.3g} s, the longest of these; {rate(result)} text tokens/s"),
        ("its error", _error(result, times, utilisation)),
    ]  # fmt: skip


def _error(result: Plan, times: Times, utilisation: Utilisation) -> str:
    """The known error of an estimate, in one line."""
    if result.chip.name == CPU.name:
        return "unknown: a CPU has no figures of its own here"
    if utilisation != Utilisation() or times.step > times.compute:
        return "unknown: only steps that compute limits were compared, at the default utilisation"
    low, high = MEASURED_OVER_ESTIMATE
    known = f"published plain steps took {low:.2f} to {high:.2f} times as long; thinking was not measured"
    return known if result.collectives is not None else f"{known}, and links were not counted"
