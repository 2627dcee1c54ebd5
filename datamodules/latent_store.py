"""Latents of clips on disk, by what was encoded and by what encoded it.

Below a cache folder each encoder has a folder of its own, so latents of another encoder are never
read. Its safetensors files hold a few dozen latents each; a file is written beside its place and
moved, so a killed run leaves whole files only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.files import clear_after_killed, written_beside
from zoo.types import Backbone

log = logging.getLogger(__name__)
PER_FILE = 64  # latents


def wave_key(wave_CN: Tensor) -> str:
    """The hash of the numbers that are encoded: of the wave after reading, mixing and cutting."""
    digest = hashlib.sha256(f"{tuple(wave_CN.shape)}".encode())
    digest.update(wave_CN.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def encoder_id(backbone: Backbone) -> str:
    """The hash of all that ``backbone.encode`` may depend on.

    These are its class, rate, channels, settings (``arguments``) and the weights of its codec; of a
    backbone without a ``codec`` the weights of all parts but the denoiser. The weights of the
    denoiser do not count, so a fine-tuned model shares the latents of its base.
    """
    kind = type(backbone)
    facts = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "sample_rate_hz": backbone.sample_rate_hz,
        "channels": backbone.channels,
        "arguments": getattr(backbone, "arguments", None),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    codec = getattr(backbone, "codec", None)
    state: dict[str, Tensor] = {}
    if isinstance(codec, nn.Module):
        state = codec.state_dict()
    elif isinstance(backbone, nn.Module):
        whole = backbone.state_dict()
        state = {n: tensor for n, tensor in whole.items() if not n.startswith("denoiser.")}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class LatentStore:
    """The latents of one encoder below ``folder``; ``get`` and ``add`` by ``wave_key``.

    A file that cannot be read, or that another encoder wrote, is named in the log and not used.
    ``flush`` writes what was added last.
    """

    def __init__(self, folder: str | Path, backbone: Backbone) -> None:
        self.encoder = encoder_id(backbone)
        self.folder = Path(folder) / self.encoder[:16]
        self._file_of: dict[str, Path] = {}
        self._open: tuple[Path | None, dict[str, Tensor]] = (None, {})
        self._new: dict[str, Tensor] = {}
        if self.folder.is_dir():
            clear_after_killed(self.folder)
            for path in sorted(self.folder.glob("[!.]*.safetensors")):
                for key in self._keys(path):
                    self._file_of[key] = path

    def _keys(self, path: Path) -> list[str]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                encoder = (file.metadata() or {}).get("encoder")
                keys = list(file.keys())
        except SafetensorError as error:
            log.warning("%s is damaged (%s); its latents are made again", path, error)
            return []
        if encoder != self.encoder:
            log.warning("%s holds latents of another encoder and is not used", path)
            return []
        return keys

    def get(self, key: str) -> Tensor | None:
        """The latent, or None where there is none yet."""
        if key in self._new:
            return self._new[key]
        path = self._file_of.get(key)
        if path is None:
            return None
        if self._open[0] != path:
            from safetensors.torch import load_file

            self._open = (path, load_file(str(path)))
        return self._open[1][key]

    def add(self, key: str, latent: Tensor) -> None:
        self._new[key] = latent.contiguous()
        if len(self._new) >= PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Writes what is new. Equal content has an equal name, so processes may write at once."""
        if not self._new:
            return
        from safetensors.torch import save_file

        name = hashlib.sha256("\n".join(self._new).encode()).hexdigest()[:16]
        path = self.folder / f"{name}.safetensors"
        with written_beside(path) as part:
            save_file(self._new, str(part), {"encoder": self.encoder})
        self._file_of |= dict.fromkeys(self._new, path)
        self._new = {}
