"""Score a thinking checkpoint with the lm-evaluation-harness (`pip install 'fqs_jax[eval]'`).

`python -m fqs_jax.lm_eval_adapter run --model fqs_jax --model_args checkpoint=W,stage=3 --tasks piqa`
is the harness's own command line with this model known to it.
"""

import sys

from fqs_jax.runtime.errors import UserError

try:
    from fqs_jax.evaluation.harness import FqsJax
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error

__all__ = ["FqsJax"]

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as refused:
        print(f"error: {refused}", file=sys.stderr)
        raise SystemExit(2) from None
