"""The estimate of a step against public measurements, and what a plan says of its error."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import plan_calibration
from fqs_jax.planning import gpus, printed, step_plan
from fqs_jax.planning.chips import CPU
from fqs_jax.planning.step_plan import Utilisation
from tests.planning.test_step_plan import small_case, small_plan


def test_the_stated_error_is_that_of_the_records() -> None:
    ratios = [
        record.seconds / plan_calibration.estimate(record) for record in plan_calibration.RECORDS
    ]
    assert tuple(round(each(ratios), 2) for each in (min, max)) == step_plan.MEASURED_OVER_ESTIMATE


def test_rates_are_those_that_the_records_state() -> None:
    """Tokens/s of a device that the sources print beside the seconds, and sequences/s of all eight GPUs."""
    mistral, llama, llama2 = plan_calibration.RECORDS
    assert mistral.rows * mistral.tokens / mistral.seconds == pytest.approx(7776.8, rel=1e-3)
    assert llama.rows * llama.tokens / llama.seconds == pytest.approx(7138.9, rel=1e-3)
    assert 8 * llama2.rows / llama2.seconds == pytest.approx(22.19, rel=1e-3)


def test_what_a_program_repeats_is_counted_by_its_parts() -> None:
    """Llama-3.1-8B, 3 rows of 8192: gate and up of 32 layers, and half of the scores and their values."""
    record = plan_calibration.RECORDS[1]
    mlp = 32 * 2 * 2 * 4096 * 14336
    attention = 32 * 4 * 4096 * (8192 + 1) / 2
    assert plan_calibration.repeated(record) == pytest.approx(3 * 8192 * (mlp + attention))
    assert plan_calibration.repeated(plan_calibration.RECORDS[2]) == 0


def test_a_plan_states_its_error_only_where_it_was_measured() -> None:
    planned = small_plan(small_case("4"))
    plan = dataclasses.replace(planned, chip=gpus.GPUS["h100"].chip, collectives={})
    limits = {name: step_plan.Times(**{"compute": 2, "links": 1, "memory": 1, name: 3}) for name in
              ("compute", "links", "memory")}  # fmt: skip

    def error(name: str, utilisation: Utilisation) -> str:
        timed = dataclasses.replace(plan, times=limits[name])
        return dict(printed.time_rows(timed, utilisation))["its error"]

    assert error("compute", Utilisation()).startswith(
        "published plain steps took 1.00 to 1.05 times"
    )
    for name, utilisation in (
        ("compute", Utilisation(compute=0.3)),
        ("links", Utilisation()),
        ("memory", Utilisation()),
    ):
        assert error(name, utilisation).startswith("unknown")
    plan = dataclasses.replace(plan, collectives=None)
    assert error("compute", Utilisation()).endswith("and links were not counted")
    plan = dataclasses.replace(planned, chip=dataclasses.replace(CPU, memory_is_real=True))
    assert error("compute", Utilisation()).startswith("unknown: a CPU")
