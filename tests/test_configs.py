"""Every shipped YAML is a test: it loads, explains its settings, and builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from toy_run import flat
from toy_sounds import write_packages

from lightning_modules import run
from zoo.configuration import Run, read_configuration
from zoo.hub.table import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SELF_EVIDENT = ("_target_", "out_dir", "seed", "sample_rate_hz")
SMALL_MUSIC = (
    "clips=8",
    "val_clips=8",
    "batch_size=4",
    "renderer=additive",
    "workers=0",
    "cache_dir=null",
)
SMALL_SCENES = (
    "val_clips=2",
    "batch_size=2",
    "bank.cache_dir=null",
    "bank.licences=null",
    "three_share=0.0",
)
# What a config needs to be built in seconds: little rendered data (denoisers also get a codec of
# their own, see below).
CAPTIONS = {
    "train": "captions_train.csv",
    "validation": "captions_val.csv",
}  # in the form of AudioCaps' files
SMALL_CAPTIONS = [
    f"data.prompts.{knob}={ROOT / 'tests' / 'outside' / name}" for knob, name in CAPTIONS.items()
]
SMALLEST = {
    "embedded/codec.yaml": [f"data.{knob}" for knob in SMALL_MUSIC],
    "embedded/denoiser.yaml": [f"data.source.{knob}" for knob in SMALL_MUSIC],
    "embedded/mood.yaml": [f"data.{knob}" for knob in SMALL_MUSIC],
    "embedded/sounds_codec.yaml": [f"data.{knob}" for knob in SMALL_SCENES],
    "embedded/sounds.yaml": [f"data.source.{knob}" for knob in (*SMALL_SCENES, "classes=null")],
    "embedded/clap_music.yaml": [f"data.{knob}" for knob in SMALL_MUSIC],
    "embedded/clap.yaml": [f"data.{knob}" for knob in SMALL_SCENES],
    "baton/quickstart_scenes.yaml": [
        f"data.pretrain.{knob}" for knob in (*SMALL_SCENES, "classes=null")
    ],
    "ddpo/ensemble_music.yaml": [
        "module.held_out_reward.name=embedded/clap"
    ],  # its own is trained first
}
CAPTIONED = ("clap_tta", "clap_tta_tango", "clap_tta_stable_audio")
SMALLEST |= {
    f"ddpo/{name}.yaml": [*SMALL_CAPTIONS, "data.prompts.count=null"] for name in CAPTIONED
}
SMALLEST |= {
    f"preferences/{name}.yaml": [
        *(knob.replace("data.", "data.source.") for knob in SMALL_CAPTIONS),
        "data.source.prompts_per_iteration=null",
    ]
    for name in ("crpo", "expert_iteration")
}
DENOISERS = {
    "embedded/denoiser.yaml": "embedded/codec.yaml",
    "embedded/sounds.yaml": "embedded/sounds_codec.yaml",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


def needs_small_zoo(config: Run) -> bool:
    """Whether it names a model outside the checkout: on the Hub, or below models/."""
    names = [
        value
        for value in flat({"module": config.module, "data": config.data}).values()
        if isinstance(value, str)
    ]
    return any(
        name.startswith("models/") or (name in ENTRIES and ENTRIES[name].path is None)
        for name in names
    )


def uncommented(text: str) -> list[str]:
    """The lines ``key: value`` without a comment on the same line or just above."""
    found = []
    above = ""
    for number, line in enumerate(text.splitlines(), 1):
        knob = re.match(r"\s*(?:- )?([A-Za-z_]\w*):\s+[^#\s]", line)
        if (
            knob
            and knob[1] not in SELF_EVIDENT
            and "#" not in line
            and not above.lstrip().startswith("#")
        ):
            found.append(f"line {number}: {line.strip()}")
        above = line
    return found


def test_there_are_configs() -> None:
    assert {"ddpo/quickstart.yaml", "ddpo/quickstart_smoke.yaml"} <= {
        relative(path) for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_every_knob_is_explained(path: Path) -> None:
    assert uncommented(path.read_text("utf-8")) == []


def test_a_knob_without_explanation_is_seen() -> None:
    assert uncommented("a:\n  b: 1  # why\n  # why\n  c: 2\n  d: 3\n  seed: 0\n") == [
        "line 5: d: 3"
    ]


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_it_loads(path: Path) -> None:
    config = read_configuration([path])
    assert config.module["_target_"].startswith("lightning_modules.")
    assert config.out_dir and not Path(config.out_dir).is_absolute()


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_it_builds(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if needs_small_zoo(read_configuration([path])):
        request.getfixturevalue("small_zoo")
    overrides = [f"out_dir={tmp_path / 'run'}", *SMALLEST.get(relative(path), [])]
    if relative(path) in DENOISERS:
        overrides.append(
            f"module.backbone.codec={small_codec(tmp_path, DENOISERS[relative(path)])}"
        )
    if any("bank.cache_dir" in knob for knob in overrides):
        place = next(knob for knob in overrides if "bank.cache_dir" in knob).split(".cache_dir")[0]
        overrides.append(f"{place}.root={write_packages(tmp_path / 'packages')}")
    built = run.build(read_configuration([path], overrides))
    assert built.data is not None and (
        built.trainer.max_steps > 0 or built.trainer.max_epochs is not None
    )
    assert any(parameter.requires_grad for parameter in built.module.parameters())
    assert not (tmp_path / "run").exists(), "building must not write"


def small_codec(folder: Path, config: str) -> Path:
    from safetensors.torch import save_file

    from zoo.backbones.spectral_codec import SpectralCodec

    settings = yaml.safe_load((ROOT / "configs" / config).read_text("utf-8"))["module"]["codec"]
    codec = SpectralCodec(**{key: value for key, value in settings.items() if key != "_target_"})
    path = folder / "codec.safetensors"
    save_file(codec.state_dict(), path)
    return path


def test_the_smoke_run_is_a_small_quickstart() -> None:
    whole, smoke = (
        read_configuration([ROOT / "configs" / "ddpo" / name])
        for name in ("quickstart.yaml", "quickstart_smoke.yaml")
    )
    assert (
        whole.module["backbone"] == smoke.module["backbone"]
        and whole.module["reward"] == smoke.module["reward"]
    )
    assert (
        whole.data["words"] == smoke.data["words"]
        and whole.data["held_out"] == smoke.data["held_out"]
    )
    assert (
        whole.module["sampler"]["guidance_scale"] == smoke.module["sampler"]["guidance_scale"]
        and whole.module["sampler"]["eta"] == smoke.module["sampler"]["eta"]
    )
    rounds = whole.data["rounds_per_epoch"] * whole.trainer["max_epochs"]
    assert rounds * whole.data["prompts_per_round"] * whole.data["repeats"] >= 1000


@pytest.mark.parametrize("name", ["quickstart.yaml", "quickstart_smoke.yaml"])
def test_the_rounds_of_the_quickstarts_fit_their_batches(name: str) -> None:
    config = read_configuration([ROOT / "configs" / "ddpo" / name])
    module = config.module
    samples = config.data["prompts_per_round"] * config.data["repeats"]
    assert samples % module["sampler"]["batch_size"] == 0
    assert samples % (module["update"]["batch_size"] * module["update"].get("per_round", 1)) == 0


def test_the_quickstart_holds_out_pairs_unknown_to_the_backbone() -> None:
    """Its held-out pairs are those that the training captions leave out; every mood has some."""
    from datamodules.music.music import held_out_pairs
    from datamodules.music.score import WORDS as CAPTION_WORDS

    data = read_configuration([ROOT / "configs" / "ddpo" / "quickstart.yaml"]).data
    assert {mood: tuple(words) for mood, words in data["words"].items()} == CAPTION_WORDS
    held_out = {tuple(pair) for pair in data["held_out"]}
    assert held_out == set(held_out_pairs(data["instruments"]))
    assert {
        mood for mood, words in data["words"].items() if {word for word, _ in held_out} & set(words)
    } == set(data["words"])
