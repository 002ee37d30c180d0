"""Export to a stock Hugging Face folder: `python -m fqs_jax.convert --workdir=W --stage=4 --export=OUT`.

For a thinking stage, the folder has the weights for use without thoughts and, beside them,
thought.safetensors, which only fqs_jax reads. Adapters are merged into the weights; with --adapter they
are written alone, as a PEFT folder.

`python -m fqs_jax.convert --gguf=FILE --export=OUT` writes a model of llama.cpp or Ollama as such a folder,
with its tokenizer and chat templates. Other programs take OUT as any checkpoint, such as
`launch --init_from=OUT`. If the model has several files, give the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fqs_jax.runtime import cli, files, local_copies, paths, typed_flags
from fqs_jax.runtime.errors import UserError, printable

_WORKDIR = typed_flags.define_path("workdir", "", "Working directory.")
_STAGE = flags.DEFINE_string(
    "stage", None, "Stage to export: number, name (3@best: its best step) or init."
)
_GGUF = typed_flags.define_path(
    "gguf", "", "GGUF file to export, in place of --workdir and --stage."
)
_EXPORT = typed_flags.define_path("export", "", "Folder to write; must not exist or be empty.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the weights; default: as trained, or float32 for --gguf, which holds all values exactly.",
)
_MAX_SHARD_GB = typed_flags.define_number(
    "max_shard_gb", 5.0, "Size of the largest file, in 10^9 bytes.", lower_bound=1e-6
)
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "Write the adapters alone, as a PEFT folder, instead of the merged model."
)


def main(_: Sequence[str]) -> None:
    if _GGUF.value:
        _export_gguf()
    else:
        _export_stage()


def _export_gguf() -> None:
    if _WORKDIR.value or _STAGE.value:
        raise UserError("--gguf=FILE needs neither --workdir nor --stage; leave them out")
    if _ADAPTER.value:
        raise UserError(
            "--adapter is for a stage with adapters, and a GGUF file has none; leave it out"
        )
    cli.require(export=_EXPORT.value)
    from fqs_jax import gguf_files

    dtype = _DTYPE.value or "float32"
    max_bytes = _MAX_SHARD_GB.value * 1e9
    gguf_files.convert(
        local_copies.of(paths.expand(_GGUF.value)),
        _EXPORT.value,
        dtype=dtype,
        max_shard_bytes=max_bytes,
    )
    name = Path(_GGUF.value).name
    print(printable(f"{name} exported to {_EXPORT.value} as {dtype}"))


def _export_stage() -> None:
    # Imported here, because --help should not wait for them.
    from fqs_jax import huggingface
    from fqs_jax.huggingface import model_card
    from fqs_jax.runs import loading, source
    from fqs_jax.runtime import sharding

    cli.require(workdir=_WORKDIR.value, stage=_STAGE.value, export=_EXPORT.value)
    files.check_free(_EXPORT.value)  # before minutes of work
    if _ADAPTER.value:
        if _MAX_SHARD_GB.value != flags.FLAGS["max_shard_gb"].default:
            raise UserError("--max_shard_gb is for whole models; leave it out with --adapter")
        _export_adapters(paths.expand(_WORKDIR.value), _STAGE.value)
        return
    # In host memory, which can hold a model that was trained on many devices.
    mesh = sharding.host_memory()
    loaded = loading.load(_WORKDIR.value, _STAGE.value, as_trained=True, mesh=mesh)
    settings = None if loaded.thought is None else dataclasses.asdict(loaded.thought)
    origin = source.origin_name(paths.expand(_WORKDIR.value))
    huggingface.export(
        loaded.params["lm"],
        loaded.model,
        _EXPORT.value,
        source=loaded.source,
        dtype=_DTYPE.value or loaded.model.param_dtype,
        thought=loaded.params.get("thought"),
        thought_settings=settings,
        max_shard_bytes=_MAX_SHARD_GB.value * 1e9,
        base=f"{origin}; this is {model_card.escaped(loaded.label)}",
    )
    print(printable(f"{loaded.label} exported to {_EXPORT.value}"))


def _export_adapters(root: Path, which: str | None) -> None:
    """Write the adapters and thoughts of a stage as a PEFT folder."""
    from fqs_jax import huggingface
    from fqs_jax.curriculum import resolve
    from fqs_jax.runs import stages
    from fqs_jax.runtime import sharding

    assert which is not None  # required
    trained, base = stages.load_adapters(root, which, sharding.host_memory())
    assert trained.lora is not None  # it has adapters
    temperature = trained.config.thought.eval_temperature
    thought = resolve.thought(
        trained.config, trained.stage, rationales=1, n_ahead_talk=1, temperature=temperature
    )
    huggingface.export_adapters(
        trained.params["lm"],
        trained.lora,
        _EXPORT.value,
        base=Path(base.name).name,  # without its path, which is private
        dtype=_DTYPE.value or "float32",
        thought=trained.params.get("thought"),
        thought_settings=None if thought is None else dataclasses.asdict(thought),
    )
    print(printable(f"adapters of {trained.stage} exported to {_EXPORT.value}, for {base.name}"))


if __name__ == "__main__":
    cli.run(main)
