"""Score a thinking checkpoint with the lm-evaluation-harness (`pip install 'fqs_jax[eval]'`).

`python -m fqs_jax.lm_eval_adapter run --model fqs_jax --model_args checkpoint=W,stage=3 --tasks piqa`
is the harness's own command line with this model known to it.
"""

import importlib
import sys
import traceback
from pathlib import Path

from fqs_jax import __version__
from fqs_jax.runtime import doors
from fqs_jax.runtime.errors import UserError, printable

__all__ = ["FqsJax"]


def _serve_harness() -> None:
    """Run the harness's own command line, with the model registered."""
    if sys.argv[1:] == ["--version"]:
        print(f"fqs_jax {__version__}")
        return
    try:
        importlib.import_module("fqs_jax.evaluation.harness")
    except ImportError as error:
        raise UserError(str(error)) from error  # the harness is an extra
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Exception as error:
        if doors.explain(error) is not None or not _is_of_harness(error):
            raise
        reason = printable(" ".join(str(error).split()), 1000)
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"the harness stops in {last.filename}:{last.lineno}: {type(error).__name__}: {reason}"
        ) from error


def _is_of_harness(error: Exception) -> bool:
    """True if no code of this package took part, so that a task or an option is at fault."""
    package = Path(__file__).resolve().parent
    files = {Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)}
    return not any(file.is_relative_to(package) for file in files - {Path(__file__).resolve()})


if __name__ == "__main__":
    doors.run(_serve_harness)
else:
    from fqs_jax.evaluation.harness import FqsJax
