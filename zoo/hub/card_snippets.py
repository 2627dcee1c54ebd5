"""The code in a model card: short, complete, and run by a test against its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.language import with_articles

PLACE = (  # stands for the folder, or owner/name on the Hub; see ``zoo.hub.cards.with_place``
    "path/to/this/folder"
)


def snippet(config: Mapping[str, Any]) -> str:
    """Markdown with one python block (adapters: two) for an artefact with this config.json."""
    kind = config["kind"]
    if kind == "adapter":
        return (
            f"{_generating(config)}\n\nWith peft alone, on the plain base"
            f" model:\n\n{_with_peft(config)}"
        )
    return _generating(config) if kind == "backbone" else _scoring(config)


def _generating(config: Mapping[str, Any]) -> str:
    sampling = config.get("sampling") or {}
    names = ("steps", "guidance_scale", "eta", "rule", "negative", "seconds")
    settings = {name: sampling[name] for name in names if name in sampling}
    written = ", ".join(
        f"{key}={tuple(value) if isinstance(value, list) else value!r}"
        for key, value in settings.items()
    )
    return _python(f"""
import zoo
from zoo.audio_files import write_audio

backbone = zoo.load("{PLACE}")  # the folder, or owner/name on the Hub
prompt = {_prompt(config)!r}
settings = dict({written})
(wave,) = zoo.generate(backbone, [prompt], seeds=[0], **settings)
write_audio("out.wav", wave)
""")


def _with_peft(config: Mapping[str, Any]) -> str:
    base = (config.get("base") or {}).get("name") or "path/to/the/base"
    return _python(f"""
import zoo
from peft import PeftModel

base = zoo.load({base!r})
# of a diffusers pipeline: pipe.unet or pipe.transformer
base.denoiser = PeftModel.from_pretrained(base.denoiser, "{PLACE}")
""")


def _scoring(config: Mapping[str, Any]) -> str:
    arguments = config.get("arguments") or {}
    names = arguments.get("class_names")
    key = arguments.get("label_key", "mood")
    label = f", labels={{{key!r}: {names[0]!r}}}" if names else ""
    return _python(f"""
import torch
import zoo
from zoo.types import Prompt, Waveform

reward = zoo.load("{PLACE}")  # the folder, or owner/name on the Hub
# put your clip here: (channels, samples) in [-1, 1], its rate in Hz
noise = Waveform(0.1 * torch.randn(2, 4 * 16_000), 16_000)
print(zoo.score(reward, [noise], [Prompt("clip", {_prompt(config)!r}{label})]).score_B)
""")


def _prompt(config: Mapping[str, Any]) -> str:
    """A prompt for the model: the first of its training prompts where they are known."""
    prompts = (config.get("training") or {}).get("prompts") or {}
    template, words, instruments = (
        prompts.get(key) for key in ("template", "words", "instruments")
    )
    if (
        isinstance(template, str)
        and isinstance(words, Mapping)
        and words
        and isinstance(instruments, list)
        and instruments
    ):
        mood, some = next(iter(words.items()))
        fields = {"{word}": str(some[0]), "{mood}": str(mood), "{instrument}": str(instruments[0])}
        for field, value in fields.items():
            template = template.replace(field, value)
        return with_articles(template)
    return "A recording of a sad piano solo"


def _python(code: str) -> str:
    return f"```python\n{code.strip()}\n```"
