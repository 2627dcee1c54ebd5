"""Tiny random versions of the zoo's big models, pulled, so that tests need no network.

``pulled`` writes them once into a cache; ``small_zoo`` (a fixture of conftest.py) makes a test see
that cache and nothing else.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import toy_clap

from zoo.hub import store
from zoo.hub.table import ENTRIES

EMOPIA_FILE = (  # where configurations look for EMOPIA's checkpoints, below the working directory
    "models/emopia/{0}/best.ckpt"
)
_NO_COMMIT = "0" * 40  # of entries whose commit the table does not know
# words that the small tokenizers can tell apart; all others are one unknown word to the CLAP and
# the Tango
WORDS = (
    "a",
    "an",
    "happy",
    "angry",
    "sad",
    "tender",
    "piano",
    "violin",
    "recording",
    "solo",
    "quality",
    "low",
    "dog",
    "barks",
    "rain",
    "falls",
    "then",
    "birds",
    "engine",
    "speaks",
)
CLAP_WORDS = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<unk>": 3,
    **{word: i + 4 for i, word in enumerate((*WORDS, "on", "leaves"))},
}


def write_audioldm(folder: Path) -> None:
    from toy_audioldm import small_model, written_folder

    written_folder(small_model(), folder)


def write_audioldm2(folder: Path) -> None:
    from toy_audioldm2 import small_model, written_folder

    written_folder(small_model(), folder)


def write_stable_audio(folder: Path) -> None:
    from toy_stable_audio import small_model, written_folder

    written_folder(small_model(), folder)


def write_tango(folder: Path) -> None:
    from toy_tango import SMALL, released_folder

    from zoo.backbones.tango import Tango

    released_folder(Tango(**SMALL).eval(), folder.parent).rename(folder)
    write_words(folder / "tokenizer.json")


def write_tangoflux(folder: Path) -> None:
    from toy_tangoflux import released_folder, small_model

    write_words(released_folder(small_model(), folder) / "tokenizer.json")


def write_words(file: Path) -> None:
    """The tokenizer of the T5 of both Tangos."""
    from toy_tango import TOKENIZER

    vocabulary = {
        word: i for i, word in enumerate(dict.fromkeys((*TOKENIZER["model"]["vocab"], *WORDS)))
    }
    text = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": vocabulary}}
    file.write_text(json.dumps(text), encoding="utf-8")


def write_clap(folder: Path) -> None:
    toy_clap.random_clap().save_pretrained(folder)
    toy_clap.tokenizer_file(folder, CLAP_WORDS)


def write_laion_clap(folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save(
        {"state_dict": toy_clap.laion_state(toy_clap.random_clap().state_dict())},
        folder / "small.pt",
    )


def write_emopia(file: Path) -> None:
    from zoo.importers.emopia import RATE_HZ, TASKS
    from zoo.rewards.short_chunk import ShortChunkResNet

    network = ShortChunkResNet(
        RATE_HZ, 256, 128, 16, (4, 4, 4, 6, 6, 6, 8), len(TASKS[file.parent.name])
    )
    file.parent.mkdir(parents=True)
    torch.save(
        {"state_dict": {f"model.{name}": tensor for name, tensor in network.state_dict().items()}},
        file,
    )


# (architecture, layout) of entries on the Hub -> what writes a small model as their authors would
WRITERS: dict[tuple[str, str], Callable[[Path], None]] = {
    ("audioldm", "diffusers"): write_audioldm,
    ("audioldm2", "diffusers"): write_audioldm2,
    ("stable_audio", "diffusers"): write_stable_audio,
    ("tango", "original"): write_tango,
    ("tangoflux", "original"): write_tangoflux,
    ("clap", "transformers"): write_clap,
    ("clap", "original"): write_laion_clap,
}


def pulled(root: Path) -> Path:
    """Writes every entry of ``WRITERS`` into the cache, as a pull would.

    EMOPIA's files and CLAP's tokenizer are below ``root``. The weights are the same in every call.
    """
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTUNE_CACHE", str(root / "cache"))
        torch.manual_seed(0)
        for key, write in WRITERS.items():
            write(root / "-".join(key))
            for entry in ENTRIES.values():
                if entry.repo_id is not None and (entry.architecture, entry.layout) == key:
                    place = store.place(entry.name, entry.revision or _NO_COMMIT)
                    shutil.copytree(root / "-".join(key), place)
                    store.write_record(
                        place, store.PullRecord(entry.repo_id, place.name, entry.licence, {})
                    )
        for task in ("ar_va", "arousal", "valence"):
            write_emopia(root / EMOPIA_FILE.format(task))
    toy_clap.tokenizer_file(root / "roberta-base", CLAP_WORDS)
    return root


def use(patch: pytest.MonkeyPatch, root: Path, folder: Path) -> None:
    """Makes ``folder`` the working directory, and the zoo's names mean small models."""
    from toy_tango import SMALL
    from toy_tangoflux import ARGUMENTS

    import zoo.importers.laion_clap
    import zoo.importers.tango as importer
    import zoo.importers.tangoflux as flux

    patch.setenv("ATTUNE_CACHE", str(root / "cache"))
    (folder / "models").symlink_to(root / "models")
    patch.chdir(folder)  # no lock file here
    sizes = {name: SMALL[name] for name in ("unet", "text_encoder", "vae", "vocoder")}
    patch.setattr(importer, "load_tango", functools.partial(importer.load_tango, **sizes))
    sizes = {name: ARGUMENTS[name] for name in ("transformer", "text_encoder", "vae")}
    patch.setattr(flux, "load_tangoflux", functools.partial(flux.load_tangoflux, **sizes))
    patch.setattr(zoo.importers.laion_clap, "TOKENIZER", str(root / "roberta-base"))
