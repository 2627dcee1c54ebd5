"""Models in diffusers layout (``model_index.json``): strict, safetensors only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.backbones.library_networks import settings_of
from zoo.errors import UserError
from zoo.hub.untrusted import check_safetensors_header, read_json
from zoo.hub.weights import refuse_wrong_numbers

# buffers of older versions and the head of a language model: no weights of the networks used here
_WEIGHTS = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:-\d+-of-\d+)?(?:\.(?P<variant>[A-Za-z]\w*))?(?:-\d+-of-\d+)?\.safetensors"
)
_REAL = ("F16", "BF16", "F32", "F64")  # as safetensors writes them
_TOKENIZER, _SENTENCE_PIECES = "tokenizer.json", "spiece.model"
_WORDS_AND_MERGES = ("vocab.json", "merges.txt")
_NO_WEIGHTS = re.compile(
    r"(^|\.)(position_ids|attn\.(masked_)?bias|num_batches_tracked)$|^lm_head\.weight$"
)


def check_folders(folder: Path, names: Iterable[str], what: str) -> None:
    """Raises ``FileNotFoundError`` naming the parts of ``what`` that are not there."""
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a {what} in diffusers layout: it has no folder {', '.join(missing)}"
        )


def read_settings(folder: Path, kind: type, model_type: str | None = None) -> dict[str, Any]:
    """The ``settings_of(kind)`` in a part's config.json, without notes of the libraries.

    Raises ``UserError`` for another ``model_type`` than the given one.
    """
    config = read_json(folder / "config.json")
    known = settings_of(kind)
    if model_type is not None and config.get("model_type") != model_type:
        raise UserError(
            f"{folder} is a {config.get('model_type')}, expected {model_type}; other text encoders,"
            " such as those of speech models, are not supported"
        )
    return {key: value for key, value in config.items() if key in known}


def read_scheduler(folder: Path, class_name: str | None = None) -> dict[str, Any]:
    """The configuration of ``folder``/scheduler.

    Raises ``UserError`` for another class than ``class_name``.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    if class_name not in (None, config.get("_class_name")):
        raise UserError(
            f"{folder / 'scheduler'} is a {config.get('_class_name')}, expected {class_name}"
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_tokenizer(folder: Path, kind: str) -> tuple[str, int]:
    """(packed tokenizer of transformers' class ``kind``, longest sequence: at most 512 tokens).

    Raises ``FileNotFoundError`` when the files of its vocabulary are missing, ``UserError`` when
    they cannot be read.
    """
    import transformers

    from zoo.conditioners.tokenizer import pack_tokenizer

    _check_vocabulary_files(folder)
    try:
        with quiet_libraries():
            tokenizer = getattr(transformers, kind).from_pretrained(
                str(folder), local_files_only=True
            )
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({str(error)[:200]}); fetch its files again"
        ) from error
    return pack_tokenizer(tokenizer.backend_tokenizer.to_str()), min(
        int(tokenizer.model_max_length), 512
    )


def _check_vocabulary_files(folder: Path) -> None:
    """Raises where vocabulary files are missing: transformers would build an empty one."""
    if (folder / _TOKENIZER).is_file() or all(
        (folder / name).is_file() for name in _WORDS_AND_MERGES
    ):
        return
    if not (folder / _SENTENCE_PIECES).is_file():
        raise FileNotFoundError(
            f"{folder} has no vocabulary: {_TOKENIZER} is missing; fetch the tokenizer's files"
            " again"
        )
    if find_spec("sentencepiece") is None:
        raise UserError(
            f"{folder} has its vocabulary as {_SENTENCE_PIECES} only; pip install sentencepiece and"
            f" load it again, or put the {_TOKENIZER} of the same tokenizer next to it"
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences transformers and diffusers, as errors are raised here in one line."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    bar = of_transformers.is_progress_bar_enabled()
    try:
        for library, _ in levels:
            library.set_verbosity(CRITICAL)
        of_transformers.disable_progress_bar()
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bar:
            of_transformers.enable_progress_bar()


def weights_variant(folder: Path) -> str | None:
    """The variant ("fp16") of the only safetensors in ``folder``; None if plain ones exist.

    Raises ``FileNotFoundError`` when there are no safetensors, ``UserError`` when there are
    several variants and no plain ones.
    """
    found = {
        match["variant"] for path in folder.iterdir() if (match := _WEIGHTS.fullmatch(path.name))
    }
    if None in found:
        return None
    if not found:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        what = (
            f"only {', '.join(pickled[:3])}, pickles, which are not read here"
            if pickled
            else "no weights"
        )
        raise FileNotFoundError(
            f"{folder} holds {what}; fetch the *.safetensors of this model, or write them where it"
            " can be loaded (save_pretrained(FOLDER))"
        )
    if len(found) > 1:
        raise UserError(
            f"{folder} holds the variants {', '.join(sorted(found))} of the weights; keep the files"
            " of one of them"
        )
    return found.pop()


def _loaded(
    empty: nn.Module, folder: Path, settings: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    if hasattr(
        empty, "config_name"
    ):  # diffusers: reads its configuration from the folder, which has been looked at
        return type(empty).from_pretrained(str(folder), torch_dtype=torch.float32, **settings)
    return type(empty).from_pretrained(
        str(folder), config=empty.config, dtype=torch.float32, **settings
    )


def read_part(empty: nn.Module, folder: Path, other_parts: str = "$^") -> nn.Module:
    """A network of the class and configuration of ``empty``, with weights of ``folder``, float32.

    ``other_parts``: a pattern for names of tensors that belong to networks which are not used here.
    Raises ``UserError`` when
    tensors are missing, left over, of another shape or quantised.
    """
    if (
        read_json(folder / "config.json").get("quantization_config") is not None
    ):  # the library would act on what it says
        raise UserError(
            f"{folder} holds quantised weights, which are not read here; give float32 or half"
            " precision"
        )
    own = empty.state_dict()
    for file in folder.glob("*.safetensors"):
        stored = check_safetensors_header(file)  # the library would turn any numbers into float32
        whole = sorted(
            f"{name} is {dtype}"
            for name, (dtype, _) in stored.items()
            if name in own and own[name].is_floating_point() and dtype not in _REAL
        )
        if whole:
            raise UserError(
                f"{file}: {', '.join(whole[:3])}, expected floating-point numbers; fetch the file"
                " again"
            )
    variant = weights_variant(folder)
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "variant": variant,
    }
    with (
        quiet_libraries()
    ):  # they list CLAP's audio tower as unexpected; what counts is looked at below
        part, report = _loaded(empty, folder, settings)
    left = [
        key
        for key in report["unexpected_keys"]
        if not _NO_WEIGHTS.search(key) and not re.match(other_parts, key)
    ]
    wrong = [
        f"{len(names)} {what} ({', '.join(map(str, list(names)[:3]))})"
        for what, names in (
            ("missing", sorted(report["missing_keys"])),
            ("left over", sorted(left)),
            ("of another shape", list(report["mismatched_keys"])),
        )
        if names
    ]
    if wrong:
        raise UserError(
            f"the tensors in {folder} do not fit {type(empty).__name__}: {'; '.join(wrong)}"
        )
    refuse_wrong_numbers(part.state_dict(), own, str(folder))
    return part
