"""Score a thinking checkpoint with the lm-evaluation-harness (`pip install 'fqs_jax[eval]'`).

`python -m fqs_jax.lm_eval_adapter run --model fqs_jax --model_args checkpoint=W,stage=3 --tasks piqa`
is the harness's own command line with this model known to it.
"""

import importlib

from fqs_jax.runtime import doors
from fqs_jax.runtime.errors import UserError

__all__ = ["FqsJax"]


def _serve_harness() -> None:
    """Run the harness's own command line, with the model registered."""
    try:
        importlib.import_module("fqs_jax.evaluation.harness")
    except ImportError as error:
        raise UserError(str(error)) from error  # the harness is an extra
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    doors.run(_serve_harness)
else:
    from fqs_jax.evaluation.harness import FqsJax
