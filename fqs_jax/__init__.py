"""Fast Quiet-STaR in JAX: language models that think, think shorter, then answer without."""

import os as _os
import sys as _sys

__version__ = "0.2.0"

# `python -m fqs_jax.NAME` puts the current folder before all others on the import path. It may be a
# downloaded checkpoint that holds a module named numpy or json, which must not run. So the folder is
# removed before anything else is imported, unless this package itself comes from it. While Python looks
# for NAME, argv[0] is "-m".
_here = _os.path.dirname(_os.path.dirname(_os.path.realpath(__file__)))
if _sys.argv[:1] == ["-m"] and not _sys.flags.safe_path and _sys.path:
    if (_sys.path[0] and _os.path.realpath(_sys.path[0])) != _here:
        del _sys.path[0]
