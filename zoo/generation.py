"""From prompts to waves, and from waves to scores, with models by name or as objects."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoint import CONFIG_FILE, load_artifact, read_config
from zoo.devices import usable_device
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.errors import did_you_mean
from zoo.importers import IMPORTERS, PIPELINES
from zoo.registry import ENTRIES, find, looks_remote
from zoo.run_models import code_named_by, is_run, of_run, refuse_downloaded
from zoo.safety import read_json
from zoo.targets import bind_types, locate
from zoo.types import Backbone, Conditioning, Prompt, Reward, RewardOutput, Waveform


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    adapters: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
) -> Any:
    """The model of a zoo name, a folder or an ``owner/name`` on the Hub: frozen, in eval mode.

    A folder is a model (our own layout, or diffusers') or a run, whose backbone is given with its
    adapter (one that is built by other code than ``zoo.load`` is opened with ``zoo.open_model``: no
    code of a folder is run here). The name of an adapter gives the base that it was trained on,
    with it. What is on the Hub and not on this machine is pulled first (``zoo.pull``; a licence
    that needs consent must have been accepted there).

    Args:
        name: a zoo name ("embedded/music"), a folder, or "owner/name".
        device: such as "cpu" or "cuda".
        dtype: such as "float16"; by default what the architecture computes in.
        adapters: names or folders of adapters, or (name, strength) pairs, that are put on a
            backbone one over the other; strength 0 is the base, 1 (the default) as trained.

    Raises: ``ValueError`` for unknown names, a device that is not here, entries that cannot be
    loaded yet and adapters of another base, and what ``zoo.pull`` raises.
    """
    device, dtype, folder = usable_device(device), as_dtype(dtype), find_or_pull(name)
    stack = _stack(adapters)
    foreign = _importer(name, folder)
    if foreign is None and is_run(folder):
        if not (folder / "model" / CONFIG_FILE).is_file():
            return _loaded_run(folder, stack).to(device=device, dtype=dtype)
        name = folder = folder / "model"
    if foreign is None and (folder / CONFIG_FILE).is_file() and read_config(folder)["kind"] == "adapter":
        name, stack = _base_of(folder), [(folder, 1.0), *stack]
        folder = find_or_pull(name)
        foreign = _importer(name, folder)
    if foreign is None:
        model = load_artifact(folder, device, dtype)
    else:
        model = locate(foreign, str(name))(str(name), folder).eval().requires_grad_(False).to(device=device, dtype=dtype)
    return _adapted(model, stack, str(name))


def _stack(adapters: Any) -> list[tuple[Path, float]]:
    """(folder, strength) pairs of what ``load`` takes as ``adapters``.

    Raises ``ValueError`` for anything else.
    """
    pairs = []
    for item in adapters if isinstance(adapters, (list, tuple)) else [adapters]:
        name, strength = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, 1.0)
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not isinstance(name, (str, Path)) or not is_number:
            raise ValueError(
                'adapters: expected names or (name, strength) pairs such as ("my_adapter", 0.7), '
                f'got {item!r}'
            )
        pairs.append((_adapter_folder(name), strength))
    return pairs


def _adapted(model: Any, stack: Sequence[tuple[Path, float]], name: str) -> Any:
    """``model`` with the adapters on it.

    Raises ``ValueError`` for adapters on what is no backbone.
    """
    if stack:
        from zoo.backbones.adapters import stack_adapters

        if not isinstance(model, Backbone):
            raise ValueError(f"{name} is a {type(model).__name__}, which takes no adapter; name a backbone")
        stack_adapters(model, stack, name)
    return model


def _importer(name: str | Path, folder: Path) -> str | None:
    """What opens ``folder`` where its files are in their authors' layout: a zoo entry's, or diffusers'; else None."""
    entry, index = ENTRIES.get(str(name)), folder / "model_index.json"
    if entry is not None:
        key = (entry.architecture, entry.layout)
    else:
        pipeline = str(read_json(index).get("_class_name")) if index.is_file() else None
        if pipeline is not None and pipeline not in PIPELINES:
            raise ValueError(f"{folder} holds a diffusers {pipeline}; {did_you_mean(pipeline, PIPELINES)}")
        key = (PIPELINES.get(pipeline), "diffusers")
    place = IMPORTERS.get(key)
    return place and place.replace(":", ".")


def _loaded_run(folder: Path, stack: Sequence[tuple[Path, float]]) -> Any:
    """A run's backbone with its adapter and ``stack`` on it.

    Raises ``ValueError`` for one that names code, which is not run.
    """
    refuse_downloaded(folder)
    code = code_named_by(folder)
    if code is not None:
        raise ValueError(
            f"{folder} is a run, and {code} builds its backbone; if the run is your own, "
            f"open it with zoo.open_model({str(folder)!r})"
        )
    model, own = of_run(folder)
    if stack or not own:
        _adapted(model, [*own, *stack] if stack else [], str(folder))
    else:
        from zoo.backbones.lora import load_adapter

        load_adapter(model, *own[0])
    return model.eval().requires_grad_(False)


def _adapter_folder(name: str | Path) -> Path:
    return find_or_pull(name) if str(name) in ENTRIES or looks_remote(str(name)) else Path(name)


def _base_of(folder: Path) -> str:
    """The zoo name or ``owner/name`` of the base that an adapter names. Raises ``ValueError`` for anything else."""
    base = read_config(folder).get("base")
    name = base.get("name") if isinstance(base, dict) else None
    if not isinstance(name, str) or not (name in ENTRIES or looks_remote(name)):
        raise ValueError(
            f"the adapter in {folder} names {name!r} as its base, which is no zoo name or owner/name; "
            f"load it as zoo.load(BASE, adapters=[({str(folder)!r}, 1.0)])"
        )
    return name


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point dtype by its name. Raises ``ValueError``."""
    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if wanted is not None and not (isinstance(wanted, torch.dtype) and wanted.is_floating_point) or (wanted is None and dtype):
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")
    return wanted


def find_or_pull(name: str | Path) -> Path:
    """The folder of a name, a path or an ``owner/name``; pulled when it is on the Hub only. Raises as ``load``."""
    try:
        return find(name)
    except FileNotFoundError:
        entry = ENTRIES.get(str(name))
        if entry is not None and entry.path is not None:
            raise
    near = difflib.get_close_matches(
        str(name).lower(), [own for own in ENTRIES if "/" in own], n=1, cutoff=0.85
    )
    if entry is None and near:  # a typing error, most likely, and no question to the network
        raise ValueError(
            f"there is no model {str(name)!r} on this machine; did you mean {near[0]!r}? "
            f"If it is on the Hub, fetch it first: python tools/zoo.py pull {name}"
        )
    from zoo.hub import pull

    return pull(str(name))


def open_model(source: str, adapter: str | Path | None = None, strength: float = 1.0, device: torch.device | str = "cpu") -> Any:
    """A backbone from a zoo name, a model's folder (see ``load``) or a run folder, with an adapter on it.

    A run folder gives its exported ``model/``, or else the backbone of its config.yaml with its ``backbone.safetensors`` (that of
    a class from outside this project), or with its ``adapter/`` (or the one that ``adapter`` names). An exported adapter gives
    its base, with it. ``strength`` is that of ``adapter``, or else of the adapter that is opened.
    Raises ``ValueError`` or ``FileNotFoundError``.
    """
    device, folder = usable_device(device), find_or_pull(source)
    foreign = _importer(source, folder)
    is_ours = foreign is None and (folder / CONFIG_FILE).is_file()
    if is_ours and adapter is None and read_config(folder)["kind"] == "adapter":
        backbone = load(_base_of(folder), device, adapters=[(folder, strength)])
    elif source in ENTRIES or foreign or (folder / CONFIG_FILE).is_file():
        backbone = load(source, device, adapters=[] if adapter is None else [(adapter, strength)])
        adapter = None
    elif (folder / "model" / CONFIG_FILE).is_file():
        backbone = load(str(folder / "model"), device)
    elif is_run(folder):
        backbone, stack = of_run(folder, adapter)
        backbone, adapter = backbone.to(device), stack[0][0] if stack else None
    else:
        raise ValueError(f"{folder} is neither a model ({CONFIG_FILE}, or model_index.json of diffusers) nor a run (config.yaml)")
    if not isinstance(backbone, Backbone):
        raise ValueError(f"{source} is a {type(backbone).__name__}, which generates nothing; name a backbone")
    if adapter is not None:
        from zoo.backbones.lora import load_adapter

        load_adapter(backbone, adapter, strength)
    return backbone.eval()


def generate(
    backbone: str | Path | Backbone,
    prompts: Prompt | str | Sequence[Prompt | str],
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 20,
    guidance_scale: float = 3.0,
    eta: float | Sequence[float] = 1.0,
    rule: str = "ddim",
    negative: str = "",
    seconds: float | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Waveform]:
    """One wave for every prompt and seed: prompts in order, within a prompt the seeds in order.

    A sample's noise depends on its seed and its prompt's id only, not on the batch.

    Args:
        backbone: a zoo name, a folder of a model or run, or an object, which stays where it is.
        prompts: a string becomes a ``Prompt`` with ``negative`` and ``seconds`` (default 4.096).
        seeds: one number, or several.
        steps, guidance_scale, eta, rule: see ``zoo.diffusion.Sampler``.
        negative, seconds: of prompts that are strings.
        batch_size: samples at a time.
        device: of a backbone that is given by name.
        progress: ``progress(done, total)`` counts samples.

    Raises: ``ValueError`` for an argument of the wrong type or range, no prompt, and when the model
    gives NaN.
    """
    numbers = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "eta": eta,
        "batch_size": batch_size,
        "seconds": seconds,
    }
    bind_types(
        generate,
        {"seeds": seeds, "rule": rule, "negative": negative, "progress": progress, **numbers},
    )
    sampler = Sampler(steps, guidance_scale, eta, rule)
    wanted = [_prompt(prompt, negative, seconds) for prompt in ([prompts] if isinstance(prompts, (str, Prompt)) else prompts)]
    seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not wanted or not seeds or batch_size < 1:
        counts = f"{len(wanted)} prompts, {len(seeds)} seeds, batch_size {batch_size}"
        raise ValueError(f"expected at least one prompt, one seed and a batch of one, got {counts}")
    if isinstance(backbone, (str, Path)):
        backbone = open_model(str(backbone), device=device)
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"backbone: a {type(backbone).__name__} generates nothing; give a zoo name, a folder "
            "or a backbone"
        )
    jobs = [(prompt, seed) for prompt in wanted for seed in seeds]
    return generate_each(backbone, jobs, sampler, batch_size, progress)


def generate_each(
    backbone: Backbone,
    jobs: Sequence[tuple[Prompt, int]],
    sampler: Sampler,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Waveform]:
    """One wave for every (prompt, seed), in order, as ``generate`` makes them. Raises ``ValueError`` when the model gives NaN."""
    device = next(backbone.denoiser.parameters()).device
    waves: dict[int, Waveform] = {}
    for place in _batches([prompt.seconds for prompt, _ in jobs], batch_size):
        for i, wave in zip(place, _sample(backbone, sampler, [jobs[i] for i in place], device), strict=True):
            waves[i] = wave
        if progress is not None:
            progress(len(waves), len(jobs))
    return [waves[i] for i in range(len(jobs))]


def _prompt(prompt: Prompt | str, negative: str, seconds: float | None) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str):
        raise ValueError(f"expected words or a Prompt, got {prompt!r}")
    if not prompt.strip():
        raise ValueError("a prompt must not be empty; say what should be heard")
    length = {} if seconds is None else {"seconds": float(seconds)}
    return Prompt(prompt, prompt, negative, **length)


def _batches(seconds: Sequence[float], batch_size: int) -> list[list[int]]:
    """Indices of equal length together, at most ``batch_size`` each."""
    groups: dict[float, list[int]] = {}
    for i, length in enumerate(seconds):
        groups.setdefault(length, []).append(i)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


@torch.no_grad()
def _sample(backbone: Backbone, sampler: Sampler, jobs: Sequence[tuple[Prompt, int]], device: torch.device) -> list[Waveform]:
    prompts = [prompt for prompt, _ in jobs]
    said, denied = sampler.sides(prompts)
    conditioning = backbone.encode_prompts(said)
    negative: Conditioning | None = None if denied is None else backbone.encode_prompts(denied)
    shape = tuple(backbone.latent_shape(prompts[0].seconds))
    generators = [noise_generator(seed, 0, prompt.id, 0) for prompt, seed in jobs]
    trajectory = rollout(
        backbone.predict, backbone.path, sampler, prompts, conditioning, negative, shape, generators, device=device
    )
    wave_BCN = backbone.decode(trajectory.clean).float().cpu()
    if not torch.isfinite(wave_BCN).all():
        raise ValueError("the model gave NaN or infinity; load it in float32 or lower the guidance scale")
    samples = prompts[0].samples(backbone.sample_rate_hz)
    return [Waveform(wave_CN[:, :samples].clamp(-1, 1), backbone.sample_rate_hz) for wave_CN in wave_BCN]


@torch.no_grad()
def score(
    reward: str | Path | Reward,
    waves: Waveform | Sequence[Waveform],
    prompts: Prompt | str | Sequence[Prompt | str],
) -> RewardOutput:
    """The reward of each wave for its prompt; waves of equal length and rate are scored together.

    ``reward``: a zoo name, a folder, or an object. A string becomes a ``Prompt`` of the wave's
    length without labels: a reward that judges by a label (a mood) needs a ``Prompt`` that has it.
    Raises ``ValueError`` when counts differ or are zero, for what is no wave, and for a name of a
    model that scores nothing.
    """
    waves = [waves] if isinstance(waves, Waveform) else list(waves)
    prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    for wave in waves:
        if not isinstance(wave, Waveform):
            raise ValueError(
                f"waves: expected Waveform(samples_CN, sample_rate_hz), got a {type(wave).__name__}"
            )
    if len(waves) != len(prompts) or not waves:
        raise ValueError(f"expected one prompt a wave, at least one, got {len(waves)} waves and {len(prompts)} prompts")
    prompts = [
        _prompt(prompt, "", wave.samples_CN.shape[-1] / wave.sample_rate_hz)
        for prompt, wave in zip(prompts, waves)
    ]
    if isinstance(reward, (str, Path)):
        name, reward = reward, load(reward)
        if not isinstance(reward, Reward):
            raise ValueError(
                f"{name} is a {type(reward).__name__}, which scores nothing; name a reward, such "
                "as embedded/clap"
            )
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, wave in enumerate(waves):
        groups.setdefault((wave.samples_CN.shape, wave.sample_rate_hz), []).append(i)
    outputs = []
    for (_, rate_hz), place in groups.items():
        outputs.append(reward(torch.stack([waves[i].samples_CN for i in place]), rate_hz, [prompts[i] for i in place]))
    order = torch.tensor([i for place in groups.values() for i in place]).argsort()
    parts = {name: torch.cat([output.parts[name] for output in outputs])[order] for name in outputs[0].parts}
    vectors = {name: torch.cat([output.vectors[name] for output in outputs])[order] for name in outputs[0].vectors}
    return RewardOutput(torch.cat([output.score_B for output in outputs])[order], parts, vectors)
