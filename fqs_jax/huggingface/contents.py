"""Errors about folders that cannot be read: adapters, other formats, quantised weights.

The errors are the first thing that many users see: they name the kind of model or file, and the way to a
folder that can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fqs_jax.huggingface.fields import Json, shown
from fqs_jax.huggingface.tensors import INDEX, WEIGHTS
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_SAVED = "save_pretrained(new_folder)"
# Patterns of weight files that are not read, what they are, and the way to safetensors. The first row
# that matches a folder counts.
_FOREIGN = (
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        "pickled weights",
        f"convert it with transformers: AutoModelForCausalLM.from_pretrained(folder).{_SAVED}",
    ),
    (
        ("*.gguf", "*.ggml"),
        "GGUF weights of llama.cpp",
        "convert it with python -m fqs_jax.convert --gguf={name} --export=NEW_FOLDER",
    ),
    (
        ("*.msgpack",),
        "Flax weights",
        f"convert it with transformers 4: from_pretrained(folder, from_flax=True).{_SAVED}",
    ),
    (
        ("*.h5", "*.tflite", "saved_model.pb", "*.ckpt.index"),
        "TensorFlow weights",
        f"convert it with transformers 4: from_pretrained(folder, from_tf=True).{_SAVED}",
    ),
    (("*.onnx",), "ONNX weights", "fetch the original checkpoint"),
    (
        ("*.npz", "*.ot", "*.mlmodel", "*.nemo"),
        "weights in {name}",
        "fetch the original checkpoint",
    ),
)


def check_config(folder: Path) -> None:
    """Refuse a path that is no folder, an adapter, and a folder without config.json.

    Raises:
      UserError: one of these, with what to do.
    """
    name = inputs.name(folder)
    if not folder.is_dir():
        raise UserError(
            f"{name} is not a folder; expected one with config.json and safetensors{way_from(folder)}"
        )
    check_no_adapter(folder)
    if not (folder / "config.json").exists() and (kind := _foreign(folder)):
        raise UserError(f"{name} has no config.json, and only {kind}")
    if not (folder / "config.json").exists():
        raise UserError(f"{name} is no Hugging Face folder: it has no config.json")


def way_from(path: Path) -> str:
    """Advice for a GGUF file that was given in place of a folder; nothing for any other path."""
    if path.suffix != ".gguf":
        return ""
    return f": python -m fqs_jax.convert --gguf={inputs.name(path)} --export=NEW_FOLDER makes one"


def check_no_adapter(folder: Path) -> None:
    """Refuse the folder of an adapter, which holds changes to the weights of another folder.

    With whole weights beside it, it is unclear which of the two is meant.

    Raises:
      UserError: the folder holds an adapter.
    """
    for file in _ADAPTERS:
        if (folder / file).exists():
            raise UserError(
                f"{inputs.name(folder)} holds a LoRA or other adapter ({file}), which is no model by "
                "itself: merge it into its base first, with peft: PeftModel.from_pretrained(base, "
                f"folder).merge_and_unload().{_SAVED}"
            )


def no_weights(folder: Path) -> UserError:
    """The error for a folder without safetensors weights; it names the weights that are there."""
    if kind := _foreign(folder):
        return UserError(f"{inputs.name(folder)} has only {kind}")
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    if parts:
        found = inputs.name(parts[0]) + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
        return UserError(
            f"{inputs.name(folder)} has neither {WEIGHTS} nor {INDEX}, only {found}; fetch the "
            "folder again, in the layout of transformers"
        )
    return UserError(
        f"{inputs.name(folder)} has neither {WEIGHTS} nor {INDEX}; fetch its weights too"
    )


def check_not_quantised(raw: Json) -> None:
    """Refuse a config.json of quantised weights.

    Raises:
      UserError: names the method, such as gptq, awq, bitsandbytes or fp8.
    """
    settings: Any = raw.get("quantization_config") or raw.get("compression_config")
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    named = f" ({shown(method)})" if isinstance(method, str) else ""
    raise UserError(f"quantised weights{named} are not supported; use the unquantised checkpoint")


def _foreign(folder: Path) -> str | None:
    """The first kind of weights in a folder that are not read, and what to do; None without any."""
    for patterns, kind, way in _FOREIGN:
        names = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        # The arguments of a training run are pickled too, but they are no weights.
        names = [name for name in names if name != "training_args.bin"]
        if names:
            shown_name = inputs.name(names[0])
            return (
                f"{kind.format(name=shown_name)} ({shown_name}), and only safetensors is read; "
                f"{way.format(name=repr(shown_name))}"
            )
    return None
