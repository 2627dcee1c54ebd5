"""Names of classes and functions in configurations that were written before the code moved.

Everything that reads a configuration passes it through ``with_current_names``, so that the rest of
the project compares and builds current names only.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

# old module -> the module that now holds its classes and functions
MODULES = {
    "datamodules.captions": "datamodules.sounds.captions",
    "datamodules.emotion": "datamodules.emopia",
    "datamodules.mixing": "datamodules.sounds.mixing",
    "datamodules.music_render": "datamodules.music.render",
    "datamodules.music_score": "datamodules.music.score",
    "datamodules.piano_command": "datamodules.music.piano_command",
    "datamodules.piano_demo": "datamodules.music.piano_demo",
    "datamodules.scene_audio": "datamodules.sounds.scene_audio",
    "datamodules.scene_prompts": "datamodules.sounds.scene_prompts",
    "datamodules.scenes": "datamodules.sounds.scenes",
    "datamodules.sound_bank": "datamodules.sounds.bank",
    "datamodules.sound_clips": "datamodules.sounds.clips",
    "datamodules.sound_fetch": "datamodules.sounds.fetch",
    "datamodules.sound_folders": "datamodules.sounds.folders",
    "datamodules.sound_licences": "datamodules.sounds.licences",
    "datamodules.sound_sources": "datamodules.sounds.sources",
    "lightning_modules.advantages": "lightning_modules.rl.advantages",
    "lightning_modules.command_line": "zoo.command_line",
    "lightning_modules.comparison": "zoo.listening.comparison",
    "lightning_modules.config_files": "zoo.configuration",
    "lightning_modules.ddpo": "lightning_modules.rl.ddpo",
    "lightning_modules.distributed": "lightning_modules.rl.distributed",
    "lightning_modules.emotion": "lightning_modules.mood_classifier",
    "lightning_modules.evaluation.command": "zoo.commands.evaluate",
    "lightning_modules.evaluation.inputs": "zoo.evaluation.inputs",
    "lightning_modules.evaluation.options": "zoo.evaluation.options",
    "lightning_modules.evaluation.page": "zoo.evaluation.page",
    "lightning_modules.evaluation.results": "zoo.evaluation.results",
    "lightning_modules.evaluation.scores": "zoo.evaluation.scores",
    "lightning_modules.evaluation.statistics": "zoo.evaluation.statistics",
    "lightning_modules.evaluation.tables": "zoo.evaluation.tables",
    "lightning_modules.held_out": "lightning_modules.rl.held_out",
    "lightning_modules.listen_command": "zoo.commands.listen",
    "lightning_modules.losses": "lightning_modules.rl.losses",
    "lightning_modules.page": "zoo.html_pages",
    "lightning_modules.policy_update": "lightning_modules.rl.ppo_update",
    "lightning_modules.prompt_checks": "lightning_modules.rl.prompt_checks",
    "lightning_modules.reward_queue": "lightning_modules.rl.reward_queue",
    "lightning_modules.rollouts": "lightning_modules.rl.rollouts",
    "lightning_modules.round_rewards": "lightning_modules.rl.round_scores",
    "lightning_modules.rl.trainable": "lightning_modules.trainable",
    "lightning_modules.round_update": "lightning_modules.rl.round_update",
    "zoo.artifact_check": "zoo.hub.artifact_check",
    "zoo.audio_folders": "zoo.audio_files.folders",
    "zoo.audio_frames": "zoo.audio_files.frames",
    "zoo.audio_headers": "zoo.audio_files.headers",
    "zoo.backbones.adapter_files": "zoo.hub.adapter_files",
    "zoo.backbones.adapters": "zoo.hub.adapters",
    "zoo.backbones.checkpointing": "zoo.backbones.library_networks",
    "zoo.backbones.settings": "zoo.backbones.library_networks",
    "zoo.card": "zoo.hub.cards",
    "zoo.card_snippets": "zoo.hub.card_snippets",
    "zoo.checkpoint": "zoo.hub.artifact",
    "zoo.construction": "zoo.hub.artifact",
    "zoo.entry": "zoo.hub.entry",
    "zoo.export": "zoo.hub.export",
    "zoo.generate_command": "zoo.commands.generate",
    "zoo.hub_client": "zoo.hub.client",
    "zoo.hub_requests": "zoo.hub.requests",
    "zoo.lengths": "zoo.backbones.lengths",
    "zoo.lock": "zoo.hub.lock",
    "zoo.metrics.bootstrap": "zoo.statistics.bootstrap",
    "zoo.metrics.clustered": "zoo.statistics.clustered",
    "zoo.metrics.intervals": "zoo.statistics.intervals",
    "zoo.metrics.retrieval": "zoo.statistics.retrieval",
    "zoo.pages.answers": "zoo.listening.answers",
    "zoo.pages.listen": "zoo.listening.app",
    "zoo.pages.pairs": "zoo.listening.pairs",
    "zoo.pages.trials": "zoo.listening.trials",
    "zoo.publish": "zoo.hub.push",
    "zoo.registry": "zoo.hub.registry",
    "zoo.resampling": "zoo.audio_files.resampling",
    "zoo.rewards.emotion": "zoo.rewards.mood",
    "zoo.rewards.emotion_calibration": "zoo.rewards.mood_calibration",
    "zoo.rewards.emotion_tasks": "zoo.rewards.mood_tasks",
    "zoo.run_facts": "zoo.hub.run_facts",
    "zoo.run_models": "zoo.hub.runs",
    "zoo.run_results": "zoo.hub.runs",
    "zoo.safety": "zoo.hub.untrusted",
    "zoo.sample_files": "zoo.generations",
    "zoo.sampling_settings": "zoo.hub.sampling_settings",
    "zoo.store": "zoo.hub.store",
    "zoo.table": "zoo.hub.table",
    "zoo.targets": "zoo.instantiate",
    "zoo.verify": "zoo.hub.verify",
    "zoo.weights": "zoo.hub.weights",
    "zoo.zoo_command": "zoo.commands.zoo",
}
# old class or function -> its new name, where the module is not a row of MODULES: the module was
# split, or its old name is now that of a package
NAMES = {
    "zoo.hub.pull": "zoo.hub.pull.pull",
    "zoo.backbones.lora.load_adapter": "zoo.hub.adapters.load_adapter",
    "zoo.backbones.lora.save_adapter": "zoo.hub.adapters.save_adapter",
    "zoo.devices.usable_device": "zoo.loading.usable_device",
    "zoo.loading.load": "zoo.load",
    "zoo.targets.bind": "zoo.signatures.bind",
    "zoo.targets.bind_types": "zoo.signatures.bind_types",
    "lightning_modules.rl.settings.AdapterSettings": (
        "lightning_modules.training_settings.AdapterSettings"
    ),
    "lightning_modules.rl.settings.MemorySettings": (
        "lightning_modules.training_settings.MemorySettings"
    ),
    "lightning_modules.training_settings.CosineSettings": (
        "lightning_modules.training_settings.ScheduleSettings"
    ),
    "lightning_modules.run.load": "zoo.configuration.read_configuration",
    "lightning_modules.run.Run": "zoo.configuration.Run",
    "datamodules.rated_clips.LabelTable": "datamodules.preferences.rated.LabelFiles",
    "datamodules.rated_clips.ordered_pairs": "datamodules.preferences.pairs.ordered_pairs",
    "datamodules.music.Clip": "datamodules.music.music.Clip",
    "datamodules.music.MusicDataModule": "datamodules.music.music.MusicDataModule",
    "datamodules.music.MusicSet": "datamodules.music.music.MusicSet",
    "datamodules.music.caption": "datamodules.music.music.caption",
    "datamodules.music.clip_list": "datamodules.music.music.clip_list",
    "datamodules.music.held_out_pairs": "datamodules.music.music.held_out_pairs",
    "datamodules.music.render_clip": "datamodules.music.music.render_clip",
    "datamodules.music.render_set": "datamodules.music.music.render_set",
}
# old function that opened a model -> now zoo.load, with its arguments by these names
OPENED = {
    f"zoo.backbones.{name}.from_pretrained": {"source": "name"}
    for name in (
        "audioldm.AudioLDM",
        "audioldm2.AudioLDM2",
        "stable_audio.StableAudio",
        "tango.Tango",
        "tangoflux.TangoFlux",
    )
}
NAMES.update(dict.fromkeys(OPENED, "zoo.load"))
# old class or function -> old argument -> its new name
ARGUMENTS = {
    **OPENED,
    "datamodules.rated_clips.LabelTable": {"file": "files", "audio_dir": "audio_root"},
}


def current_name(path: str) -> str:
    """The dotted path under which ``path`` is found now; unchanged where it did not move."""
    if path in NAMES:
        return NAMES[path]
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = MODULES.get(".".join(parts[:cut]))
        if module is not None:
            return ".".join([module, *parts[cut:]])
    return path


def with_current_name(path: Any) -> Any:
    """``current_name`` of a ``_target_``, with one warning per old name; other values stay."""
    if not isinstance(path, str):
        return path
    name = current_name(path)
    if name != path:
        _warn(path, name)
    return name


def with_current_names(tree: Any) -> Any:
    """A copy of a configuration with current names of targets and arguments.

    Warns once per old name.
    """
    if isinstance(tree, list):
        return [with_current_names(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    items = {key: with_current_names(value) for key, value in tree.items()}
    return with_current_target(items)


def with_current_target(node: Mapping[str, Any]) -> dict[str, Any]:
    """One node of a tree, its ``_target_`` and the names of its arguments as they are now."""
    if "_target_" not in node:
        return dict(node)
    old = node["_target_"]
    renamed = ARGUMENTS.get(old, {}) if isinstance(old, str) else {}
    items = {renamed.get(key, key): value for key, value in node.items()}
    return {**items, "_target_": with_current_name(old)}


@functools.cache
def _warn(old: str, new: str) -> None:
    warnings.warn(f"_target_ {old} has moved: write {new}", FutureWarning, stacklevel=4)
