"""EMOPIA's audio classifiers (arXiv 2108.01374): their ``best.ckpt`` as an ``EmotionReward``.

The authors' folder is ``best_weight/wav/{ar_va,arousal,valence}/{best.ckpt,hparams.yaml}``:
Lightning checkpoints, pickled, of a short-chunk ResNet. They are read as data, every tensor must
find its place, and all sizes come from the tensors themselves.

    # an EmotionReward: reward(wave_BCN, rate_hz, prompts)
    reward = load_emopia("best_weight/wav/ar_va/best.ckpt")
    # to keep it as safetensors:
    kind, architecture, arguments = zoo.hub.artifact.identity_of(reward)
    zoo.hub.artifact.save_artifact("emopia", kind=kind, architecture=architecture,
    arguments=arguments, module=reward)
    zoo.load("emopia")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError, did_you_mean, parsing
from zoo.hub.artifact import build_within
from zoo.hub.weights import misfits
from zoo.importers.pickles import LIGHTNING_CALLBACKS, load_pickle_weights
from zoo.rewards.mood import EmotionReward
from zoo.rewards.mood_tasks import CHUNK_S, RATE_HZ, TASKS, classes_of
from zoo.rewards.short_chunk import STAGES, ShortChunkResNet

PREFIX = "model."  # of every tensor in the file
_FILTERS, _WINDOW = "spec.mel_scale.fb", "spec.spectrogram.window"


def load_emopia(
    path: str | Path,
    task: str | None = None,
    value: str = "value",
    chunk_rule: str = "full",
    hop_s: float = 1.0,
    label_key: str = "mood",
    class_mean: Sequence[float] | None = None,
    class_std: Sequence[float] | None = None,
) -> EmotionReward:
    """The classifier of a ``best.ckpt`` as a reward, frozen, on the CPU.

    ``hparams.yaml`` next to the file, or the settings inside it, must agree with the tensors.

    Args:
        path: the checkpoint.
        task: "ar_va" (four moods), "arousal" or "valence"; by default the name of the file's
            folder, else by the number of classes where only one task has as many. Prompts' labels
            may be moods ("happy") or quadrants ("Q1") for every task, and "HA", "LA", "HV", "LV"
            for those two.
        value, chunk_rule, hop_s, label_key, class_mean, class_std: as ``EmotionReward`` takes them;
            the chunk rule ``upstream`` is the authors' own.

    Raises: ``FileNotFoundError``, and ``UserError`` naming tensors that are missing, unknown or of
        another shape, settings that contradict them, and an unknown or ambiguous task.
    """
    path = Path(path)
    content = load_pickle_weights(path, blanks=LIGHTNING_CALLBACKS)
    state = _unprefixed(content.get("state_dict", content), path)
    sizes = network_sizes(state, str(path))
    _check_settings(_settings(content, path), state, sizes, path)
    task = _task(task, sizes["n_classes"], path)
    arguments = {
        "value": value,
        "class_names": list(TASKS[task]),
        "sample_rate_hz": RATE_HZ,
        "chunk_s": CHUNK_S,
        **{name: sizes[name] for name in ("n_fft", "hop_samples", "n_mels", "channels")},
        "activation": "sigmoid",
        "rms": None,
        "chunk_rule": chunk_rule,
        "hop_s": hop_s,
        "label_key": label_key,
        "classes_of": classes_of(task),
        "class_mean": None if class_mean is None else list(class_mean),
        "class_std": None if class_std is None else list(class_std),
    }
    reward = build_within(EmotionReward, arguments, state, str(path))
    load_network(reward.classifier, state, str(path))
    return reward.eval().requires_grad_(False)


def network_sizes(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """``n_fft, hop_samples, n_mels, channels, n_classes`` of a network, from its tensors.

    Names have no prefix.

    Raises ``UserError`` naming a tensor that is missing or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in state:
            raise UserError(
                f"{where} is not an EMOPIA audio classifier: it has no tensor {PREFIX}{name}"
            )
        if state[name].ndim != dimensions:
            raise UserError(
                f"{where}: {PREFIX}{name} has shape {tuple(state[name].shape)}, expected"
                f" {dimensions} dimensions"
            )
        return tuple(state[name].shape)

    n_fft = shape(_WINDOW, 1)[0]
    return {
        "n_fft": n_fft,
        "hop_samples": n_fft // 2,  # torchaudio's default, which the authors left
        "n_mels": shape(_FILTERS, 2)[1],
        "channels": [shape(f"layer{stage}.conv_1.weight", 4)[0] for stage in range(1, STAGES + 1)],
        "n_classes": shape("dense2.weight", 2)[0],
    }


def load_network(network: ShortChunkResNet, state: Mapping[str, Tensor], where: str) -> None:
    """Puts exactly the authors' tensors (names without prefix) into ``network``.

    The window and filters in the file must be those that ``network`` computes (periodic Hann, HTK),
    or it would hear other bands. Raises ``UserError`` with the names.
    """
    wanted = network.state_dict()
    wrong = misfits(state, wanted, PREFIX)
    if wrong:
        raise UserError(
            f"the tensors in {where} are not those of EMOPIA's audio classifier; {wrong}"
        )
    infinite = [PREFIX + name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise UserError(
            f"{where}: {infinite[0]} holds numbers that are not finite; the file is damaged, fetch"
            " it again"
        )
    for name in (_WINDOW, _FILTERS):
        worst = (state[name].float() - wanted[name]).abs().max().item()
        if worst > 1e-3:
            raise UserError(
                f"{where}: {PREFIX}{name} differs by {worst:.2g} from the one for {RATE_HZ} Hz, 0"
                f" to {RATE_HZ // 2} Hz; it was trained with another front end, which this importer"
                " does not know"
            )
    network.load_state_dict(dict(state), strict=True)


def _unprefixed(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in state.values()
    ):
        raise UserError(
            f"{path} has no dictionary of tensors under state_dict; is it a checkpoint of EMOPIA's"
            " classifier?"
        )
    unknown = sorted(name for name in state if not str(name).startswith(PREFIX))
    if unknown:
        raise UserError(
            f"{path} holds {len(unknown)} tensors that do not begin with {PREFIX!r}, such as"
            f" {unknown[0]}; EMOPIA's checkpoints hold its network only"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The authors' settings:

    ``hparams.yaml`` next to the checkpoint, and over them those inside it; having none is fine.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """Python's own tags (an argparse namespace) read as the plain values below them."""

    Plain.add_multi_constructor(
        "tag:yaml.org,2002:python/",
        lambda loader, _, node: (
            loader.construct_mapping(node, deep=True)
            if isinstance(node, yaml.MappingNode)
            else None
        ),
    )
    beside = path.with_name("hparams.yaml")
    settings = {}
    if beside.is_file():
        with parsing(f"{beside} (it belongs to {path.name}; fetch both again)", "YAML"):
            read = yaml.load(beside.read_text(encoding="utf-8"), Plain)
        settings.update(read if isinstance(read, dict) else {})
    inside = content.get("hyper_parameters", {})
    return settings | (inside if isinstance(inside, dict) else {})


def _check_settings(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], sizes: Mapping[str, Any], path: Path
) -> None:
    found = {
        "n_channels": sizes["channels"][0],
        "n_fft": sizes["n_fft"],
        "n_mels": sizes["n_mels"],
        "sample_rate": RATE_HZ,
        "f_min": 0,
        "f_max": RATE_HZ / 2,
    }
    for name, here in found.items():
        given = settings.get(name, here)
        if isinstance(given, (int, float)) and given != here:
            raise UserError(
                f"{path}: its settings say {name} = {given:g}, its tensors and EMOPIA's front end"
                f" say {here:g}"
            )


def _task(task: str | None, n_classes: int, path: Path) -> str:
    if task is not None and task not in TASKS:
        raise UserError(f"there is no EMOPIA task {task!r}; {did_you_mean(task, TASKS)}")
    fitting = [name for name, classes in TASKS.items() if len(classes) == n_classes]
    if task is None:
        folder = path.resolve().parent.name
        if folder in TASKS:
            task = folder
        elif len(fitting) == 1:
            task = fitting[0]
    if task is None:
        raise UserError(
            f"{path} has {n_classes} classes: name its task, {' or '.join(fitting or TASKS)}"
        )
    if len(TASKS[task]) != n_classes:
        raise UserError(
            f"{path} has {n_classes} classes; task {task!r} has {len(TASKS[task])}:"
            f" {', '.join(TASKS[task])}"
        )
    return task
