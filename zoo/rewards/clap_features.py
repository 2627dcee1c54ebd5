"""CLAP embeddings of files and captions, computed once and kept on disk.

A cache folder holds safetensors files of a few dozen embeddings each. The key of an embedding is
the SHA-256 of the file's bytes or of the caption, so a file that is moved or renamed is found again
and one that is changed is embedded anew. Every file names its encoder (``encoder_id``). Files are
written beside their place and moved: what is interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.audio_files import read_audio
from zoo.errors import UserError
from zoo.files import clear_after_killed, sha256_of, written_beside
from zoo.rewards.clap import ClapReward

PER_FILE = 64  # embeddings: an interruption loses at most so many
_FORMAT = 1  # raise it when the same CLAP would embed the same file differently


@dataclass(frozen=True)
class ClapFeatures:
    """Unit embeddings, float32 on the CPU.

    - ``audio``: path as it was given -> (E,).
    - ``text``: caption -> (E,).
    - ``content``: path -> the hash of its bytes: equal for copies.
    - ``refused``: path -> why that file could not be embedded.
    - ``computed``: how many embeddings were not in the cache.
    """

    audio: Mapping[Path, Tensor]
    text: Mapping[str, Tensor]
    content: Mapping[Path, str]
    refused: Mapping[Path, str]
    computed: int


def encoder_id(clap: ClapReward) -> str:
    """SHA-256 (64 hex digits) of a CLAP's arguments and weights: of all that shapes an embedding.

    The same weights in another precision are another encoder.
    """
    settings = {name: value for name, value in clap.arguments.items() if name != "checkpoint"}
    digest = hashlib.sha256(json.dumps([_FORMAT, settings], sort_keys=True).encode())
    for name, tensor in sorted(clap.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def clap_features(
    clap: ClapReward,
    paths: Iterable[str | Path],
    texts: Iterable[str],
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClapFeatures:
    """The embeddings of files and captions, from the cache or computed now.

    Each is computed alone, so the numbers do not depend on what else was asked for or on where an
    earlier run stopped. Every file is resampled from the rate in its own header.

    Args:
        clap: on any device.
        paths: audio files; equal ones count once.
        texts: captions; equal ones count once.
        cache_dir: the cache folder; None keeps nothing.
        progress: called as ``progress(done, total)``, which count what was not in the cache.

    Returns:
        The embeddings, and the files that could not be read, by name.

    Raises:
        UserError: for a cache of another encoder or a damaged file in it, and for a caption that
            the CLAP refuses.
        OSError: where the cache cannot be written.
    """
    given = list(dict.fromkeys(Path(path) for path in paths))
    captions = list(dict.fromkeys(texts))
    refused: dict[Path, str] = {}
    keys: dict[Path, str] = {}
    for path in given:
        try:
            keys[path] = f"audio.{sha256_of(path)}"
        except OSError as error:
            refused[path] = f"{path}: {error.strerror or error}"
    text_keys = {text: f"text.{hashlib.sha256(text.encode()).hexdigest()}" for text in captions}
    store = _Store(clap, cache_dir)
    first_of = {key: path for path, key in reversed(keys.items()) if key not in store.kept}
    missing = {key: text for text, key in text_keys.items() if key not in store.kept}
    total = len(first_of) + len(missing)
    done = 0
    unreadable: dict[str, str] = {}
    try:
        for key, text in missing.items():
            store.add(key, clap.embed_text([text])[0])
            done += 1
            if progress is not None:
                progress(done, total)
        for key, path in first_of.items():
            try:
                store.add(key, _embedded(clap, path))
            except (UserError, OSError) as error:
                unreadable[key] = str(error)
            done += 1
            if progress is not None:
                progress(done, total)
    finally:
        store.flush()
    for path, key in keys.items():
        if key in unreadable:
            refused[path] = unreadable[key]
    audio = {path: store.kept[key] for path, key in keys.items() if path not in refused}
    text = {text: store.kept[key] for text, key in text_keys.items()}
    return ClapFeatures(audio, text, keys, refused, done - len(unreadable))


@torch.no_grad()
def _embedded(clap: ClapReward, path: Path) -> Tensor:
    wave = read_audio(path)
    device = next(clap.parameters()).device
    embedding_E = clap.embed_audio(wave.samples_CN[None].to(device), wave.sample_rate_hz)[0]
    if not torch.isfinite(embedding_E).all():
        raise UserError(f"{path}: its embedding is not finite")
    return embedding_E


class _Store:
    """Embeddings by key, and those of them that are not on disk yet."""

    def __init__(self, clap: ClapReward, cache_dir: str | Path | None) -> None:
        self.folder = None if cache_dir is None else Path(cache_dir)
        self.kept: dict[str, Tensor] = {}
        self._new: list[str] = []
        self._labels: dict[str, str] = {}
        if self.folder is not None:
            self._labels = {"encoder": encoder_id(clap), "name": clap.name}
            if self.folder.is_dir():
                clear_after_killed(self.folder)
                for path in sorted(self.folder.glob("[!.]*.safetensors")):
                    self.kept |= self._read(path)

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata() or {}
                if found.get("encoder") != self._labels["encoder"]:
                    other = found.get("name", "something else")
                    own = self._labels["name"]
                    both = f"{other} ({str(found.get('encoder'))[:12]})"
                    raise UserError(
                        f"{path}: these are embeddings of {both}, not of {own}"
                        f" ({self._labels['encoder'][:12]}); name another cache folder"
                    )
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{path} is damaged ({error}); remove this file, its embeddings are made again"
            ) from error

    def add(self, key: str, embedding_E: Tensor) -> None:
        self.kept[key] = embedding_E.detach().float().cpu().contiguous()
        self._new.append(key)
        if len(self._new) >= PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Writes what is new. Equal content has an equal name, so processes may write at once."""
        if self.folder is None or not self._new:
            return
        name = hashlib.sha256("\n".join(self._new).encode()).hexdigest()[:16]
        with written_beside(self.folder / f"{name}.safetensors") as part:
            save_file({key: self.kept[key] for key in self._new}, part, self._labels)
        self._new = []
