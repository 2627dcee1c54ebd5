"""An adapter on disk: a folder in peft's layout, with a config.json that identifies its base.

``adapter_config.json`` and ``adapter_model.safetensors`` are what
``peft.PeftModel.from_pretrained(pipe.unet, folder)`` reads beside a plain diffusers pipeline. Of
somebody else's adapter_config.json only plain numbers and layer names are taken: peft itself would
import a module named there, or change the base's weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.backbones.lora import check_alpha
from zoo.errors import UserError, did_you_mean
from zoo.files import folder_written_beside, sha256_of
from zoo.hub.artifact import CONFIG_FILE as FACTS_FILE
from zoo.hub.artifact import read_config, write_config
from zoo.hub.untrusted import check_safetensors_header, file_inside, read_json
from zoo.hub.weights import blobs_of, refuse_wrong_numbers, save_weights

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_TAKEN = ("r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora")
_IGNORED = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "init_lora_weights",
    "auto_mapping",
    "peft_version",
)
_STARTS = (
    True,
    False,
    "gaussian",
    "orthogonal",
)  # other starts ("pissa", "olora" ...) change the base's weights
_NARROWER = {"float64": ("float32", "bfloat16", "float16"), "float32": ("bfloat16", "float16")}


def base_tensors(denoiser: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of the weights below any adapters, sorted.

    Names are those without adapters.
    """
    named = {}
    for name, tensor in denoiser.state_dict().items():
        if ".lora_" not in f".{name}":
            named[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = tensor
    yield from sorted(named.items())


def _dtype_name(denoiser: nn.Module) -> str:
    kinds = {tensor.dtype for _, tensor in base_tensors(denoiser) if tensor.is_floating_point()}
    return str(max(kinds, key=lambda dtype: dtype.itemsize, default=torch.float32)).removeprefix(
        "torch."
    )


def base_sha256(denoiser: nn.Module, dtype: str) -> str:
    """The SHA-256 of names, shapes and values of the base weights.

    Floating-point ones are hashed as ``dtype``.
    """
    digest = hashlib.sha256()
    for name, tensor in base_tensors(denoiser):
        wide = tensor.detach().to(
            "cpu", getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        )
        digest.update(f"{name} {tuple(wide.shape)} {wide.dtype}\n".encode())
        digest.update(wide.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def base_hashes(denoiser: nn.Module) -> dict[str, str]:
    """dtype -> ``base_sha256``: as the denoiser is, and as it would be loaded in less precision."""
    own = _dtype_name(denoiser)
    return {dtype: base_sha256(denoiser, dtype) for dtype in (own, *_NARROWER.get(own, ()))}


def check_base(
    denoiser: nn.Module,
    recorded: Mapping[str, str],
    what: str,
    trained_on: str | None,
    here: str | None = None,
) -> None:
    """Refuses a base that an adapter was not trained on, by the hash of the denoiser.

    Hashes are compared in the denoiser's own dtype, or else in the recorded one (training in half
    precision).

    Args:
        denoiser: of the base that is here.
        recorded: ``base_hashes`` of the base at training time; empty: nothing is compared.
        what: the adapter, for the message.
        trained_on: the name of the recorded base, for the message.
        here: the name of this base, for the message.

    Raises: ``UserError`` with both bases and both hashes.
    """
    if not recorded:
        return
    own = _dtype_name(denoiser)
    dtype = own if own in recorded else next(iter(recorded))
    found = base_sha256(denoiser, dtype)
    if found != recorded[dtype]:
        raise UserError(
            f"{what} was trained on another base: on {trained_on or 'one without a name'}, whose"
            f" denoiser has the sha256 {recorded[dtype]}, but {here or 'this base'} has {found} (as"
            f" {dtype}); load it on the base it was trained on"
        )


def write_adapter(
    model: PeftModel,
    folder: str | Path,
    *,
    recorded: Mapping[str, str] | None = None,
    base: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    **facts: Any,
) -> Path:
    """Writes the one adapter of ``model`` and returns its folder.

    It is written next to ``folder`` and moved there; an older folder is replaced. Equal weights
    give equal bytes.

    Args:
        model: the denoiser with its live adapter.
        folder: where to write.
        recorded: ``base_hashes`` of the base it was trained on (default: of the base below it now).
        base: more about that base, such as its name.
        dtype: of the weights on disk (default: as they are).
        facts: plain values for config.json.

    Raises: ``UserError`` for several adapters at once or weights that are not finite, ``OSError``
        when writing fails.
    """
    from peft import get_peft_model_state_dict

    folder = Path(folder)
    base = dict(base or {})
    if len(model.peft_config) != 1:
        raise UserError(
            f"{len(model.peft_config)} adapters are stacked here, a folder holds one; merge them"
            " instead (zoo.hub.adapters.merge_adapters)"
        )
    ((name, config),) = model.peft_config.items()
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    settings |= {
        "inference_mode": True,
        "auto_mapping": None,
        "base_model_name_or_path": base.get("name"),
    }
    content: dict[str, Any] = {"kind": "adapter", "architecture": "lora"}
    content |= {"base": {**base, "sha256": dict(recorded or base_hashes(model))}, **facts}
    with folder_written_beside(folder, replace=True) as part:
        save_weights(weights, part / WEIGHTS_FILE, dtype)
        text = json.dumps(settings, indent=2, sort_keys=True, allow_nan=False)
        (part / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        write_config(part, content, (CONFIG_FILE, WEIGHTS_FILE))
    return folder


def read_adapter(
    folder: str | Path, facts: Mapping[str, Any] | None = None
) -> tuple[LoraConfig, dict[str, Tensor], Mapping[str, Any]]:
    """The configuration of an adapter, its tensors, and our facts (``{}`` for a plain peft folder).

    ``facts``: the content of its config.json where that has been read. Raises ``UserError`` when
    files are missing, damaged, changed, or ask for anything but plain LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} holds no adapter: {', '.join(missing)} missing; give the folder that"
            " save_adapter wrote"
        )
    if facts is None:
        facts = read_config(folder) if (folder / FACTS_FILE).exists() else {}
    if facts.get("kind", "adapter") != "adapter":
        raise UserError(f"{folder} holds a {facts['kind']}, not an adapter")
    for name, promised in facts.get("sha256", {}).items():
        if sha256_of(file_inside(folder, name, blobs_of(folder))) != promised:
            raise UserError(
                f"{folder / name} is not the file that {FACTS_FILE} describes (sha256 differs);"
                " fetch it again"
            )
    config = _read_lora_config(file_inside(folder, CONFIG_FILE, blobs_of(folder)))
    path = file_inside(folder, WEIGHTS_FILE, blobs_of(folder))
    try:
        check_safetensors_header(path)
        weights = load_file(str(path))
    except (SafetensorError, UserError, OSError) as error:
        raise UserError(
            f"the adapter in {folder} cannot be read ({error}); it may be damaged, export it again"
        ) from error
    refuse_wrong_numbers(weights, None, str(path))
    return config, weights, facts


def _read_lora_config(path: Path) -> LoraConfig:
    from peft import LoraConfig

    found = read_json(path)
    if found.get("peft_type") != "LORA":
        raise UserError(
            f"{path}: peft_type {found.get('peft_type')!r} cannot be loaded, only 'LORA'"
        )
    if found.get("init_lora_weights", True) not in _STARTS:
        start = found["init_lora_weights"]
        raise UserError(
            f"{path}: init_lora_weights {start!r} changes the base model; convert it to plain LoRA"
        )
    standard = LoraConfig().to_dict()
    for key, value in found.items():
        if key not in (*_TAKEN, *_IGNORED) and value not in (
            standard.get(key),
            None,
            False,
            "",
            [],
            {},
        ):
            hint = "" if key in standard else f"; {did_you_mean(key, standard)}"
            raise UserError(
                f"{path}: {key}={value!r} is not plain LoRA, which alone can be loaded{hint}"
            )
    taken = {key: found[key] for key in _TAKEN if key in found}
    for key, (is_right, wanted) in _CHECKS.items():
        if (key in ("r", "target_modules") or key in taken) and not is_right(taken.get(key)):
            raise UserError(f"{path}: {key} must be {wanted}, got {taken.get(key)!r}")
    check_alpha(
        taken.get("lora_alpha", standard["lora_alpha"]), int(taken["r"]), f"{path}: lora_alpha"
    )
    return LoraConfig(**taken, bias="none", inference_mode=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda v: _is_number(v) and int(v) == v >= 1, "a whole number of at least 1"),
    "lora_alpha": (_is_number, "a number"),
    "lora_dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "use_rslora": (lambda v: isinstance(v, bool), "true or false"),
    "target_modules": (
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(n, str) and n for n in v),
        "a list of layer names",
    ),
}
