"""Networks of diffusers and transformers in backbones: their settings, gradient checkpointing.

Checkpointing (arXiv 1604.06174) passes arguments to attention blocks by name.

``AudioLDM2UNet2DConditionModel`` hands its checkpointed attention blocks seven arguments by
position, and their signature has gained one in the middle: with checkpointing on, the text mask
arrives as the mask of self-attention. Without a mask nothing is wrong. With one, the library stops
(keys and mask differ in length), except where latent positions happen to fit: there it is silently
wrong. Here the same seven arguments are bound to the names that they are meant for.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.errors import UserError, did_you_mean

# keys of every configuration of transformers; no network depends on them
_COMMON = {
    "dtype",
    "architectures",
    "id2label",
    "label2id",
    "transformers_version",
    "model_type",
    "problem_type",
}


def settings_of(kind: type) -> tuple[str, ...]:
    """Reads the settings of a part.

    They are the arguments of a diffusers network, or the configuration keys of a transformers one.
    """
    if hasattr(kind, "to_dict"):
        return tuple(
            key for key in kind().to_dict() if not key.startswith("_") and key not in _COMMON
        )
    return tuple(key for key in inspect.signature(kind.__init__).parameters if key != "self")


def only_known(given: Mapping[str, Any], known: Collection[str], what: str) -> dict[str, Any]:
    """``given`` as a dictionary.

    Raises ``UserError`` for a key that is not among ``known``: libraries act on some others
    (attention kernels that are downloaded), and a configuration from somebody else must not reach
    them.
    """
    for key in given:
        if key not in known:
            raise UserError(f"{what} has no setting {key!r}; {did_you_mean(str(key), known)}")
    return dict(given)


def checked(kind: type, given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``given`` as a dictionary, all of it ``settings_of(kind)``. Raises as ``only_known``."""
    return only_known(given, settings_of(kind), what)


_MEANT = (
    "hidden_states",
    "encoder_hidden_states",
    "timestep",
    "class_labels",
    "cross_attention_kwargs",
    "attention_mask",
    "encoder_attention_mask",
)


def checkpoint_by_name(module: nn.Module, *args: Any) -> Any:
    """``module(*args)`` without kept activations, which are computed again for gradients.

    For ``enable_gradient_checkpointing`` of diffusers' models. Raises ``RuntimeError`` when an
    attention block is given another number of arguments than the seven that are known (another
    version of diffusers).
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    if not isinstance(module, Transformer2DModel):
        return checkpoint(module, *args, use_reentrant=False)
    if len(args) != len(_MEANT):
        raise RuntimeError(
            f"diffusers gives a checkpointed attention block {len(args)} arguments, expected"
            f" {len(_MEANT)}; turn checkpointing off or use the version of diffusers in setup.cfg"
        )
    named = dict(zip(_MEANT[1:], args[1:], strict=True))
    return checkpoint(partial(module, **named, return_dict=False), args[0], use_reentrant=False)


def set_checkpointing(denoiser: nn.Module, enabled: bool) -> None:
    """Switches checkpointing of a diffusers U-Net, below an adapter too.

    Outputs and gradients are the same either way.
    """
    from diffusers import AudioLDM2UNet2DConditionModel
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    unet = denoiser.get_base_model() if hasattr(denoiser, "get_base_model") else denoiser
    if not enabled:
        unet.disable_gradient_checkpointing()
        return
    unet.enable_gradient_checkpointing(checkpoint_by_name)
    if isinstance(
        unet, AudioLDM2UNet2DConditionModel
    ):  # its attention blocks are checkpointed whole: their parts would be
        for (
            module
        ) in unet.modules():  # computed a third time. Other U-Nets checkpoint the parts only.
            if isinstance(module, Transformer2DModel):
                module.gradient_checkpointing = False
