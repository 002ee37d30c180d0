"""Score a thinking checkpoint with the lm-evaluation-harness (`pip install 'fqs_jax[eval]'`).

`python -m fqs_jax.lm_eval_adapter run --model fqs_jax --model_args checkpoint=W,stage=3 --tasks piqa`
is the harness's own command line with this model known to it.
"""

from fqs_jax.runtime import doors
from fqs_jax.runtime.errors import UserError

__all__ = ["FqsJax"]


def _serve_harness() -> None:
    """Run the harness's own command line."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import fqs_jax.evaluation.harness  # noqa: F401  registers the model
    except ImportError as error:
        raise UserError(str(error)) from error
    cli_evaluate()


if __name__ == "__main__":
    doors.run(_serve_harness)
else:
    from fqs_jax.evaluation.harness import FqsJax
