"""Demo: `python -m fqs_jax.demo W` serves a page on which a model can be watched while it thinks.

Type a prompt, and every token comes with its thought, weight and gain; choose another stage; compare the
base, the thinking model and its student with their times. W is a working directory or a Hugging Face
folder. Needs gradio: pip install 'fqs_jax[demo]'.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, paths, typed_flags
from fqs_jax.runtime.errors import printable

_WORKDIR = typed_flags.define_path(
    "workdir", "", "Working directory; also accepted without the flag."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve on; 0.0.0.0 lets everybody on the network in."
)
_PORT = flags.DEFINE_integer("port", 7860, "Port to serve on; 0 = any free one.", 0, 65535)
cli.define_device_flags()


def main(argv: Sequence[str]) -> None:
    """Serve the page of the folder that the command line names, until it is stopped."""
    # Imported here, because --help should not wait for them.
    from fqs_jax.reporting import live_app, live_models

    root = paths.expand(cli.one_workdir(argv, _WORKDIR.value))
    live_models.models(root)  # fails early, before a slow import
    port = live_app.free_port(_HOST.value, _PORT.value)
    address = live_app.serve(root, live_app.library(), _HOST.value, port, cli.mesh_from_flags())
    print(f"{printable(str(root))} is at {address} (Ctrl-C stops)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    cli.run(main, arguments=1)
