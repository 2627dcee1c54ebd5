"""The command line of ``tools/evaluate.py``: Tables 1 and 2 for any model, folder and rewards."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.evaluation.beside import best_of_n_table, clips_per_prompt, picking_of, plain_ways
from zoo.evaluation.inputs import (
    Configuration,
    ReadTable,
    configuration,
    folder_samples,
    is_generations,
    model_clips,
    open_backbone,
    parse_adapter,
)
from zoo.evaluation.options import BASE, SAMPLES, SEED, WHICH, parser
from zoo.evaluation.page import write_page
from zoo.evaluation.requests import check, is_sampled
from zoo.evaluation.results import (
    CLIPS,
    ORIGINAL,
    RESULTS,
    TRAINED,
    ClipSet,
    Picking,
    Results,
    combined,
    read_results,
    write_results,
)
from zoo.evaluation.scores import (
    OpenScorer,
    ScoreCache,
    check_prompts,
    node_name,
    open_scorers,
    sample_numbers,
    scored_clips,
    short_name,
)
from zoo.evaluation.tables import all_tables, as_markdown, summary
from zoo.files import check_writable, clear_after_killed, files_written_together
from zoo.generations import Sample
from zoo.hub.artifact import CONFIG_FILE, read_config
from zoo.hub.registry import find
from zoo.hub.runs import is_run, recorded_sampling
from zoo.hub.sampling_settings import PartialSampling, SamplingSettings, merged
from zoo.loading import usable_device
from zoo.types import Prompt

# What an evaluation writes, and may leave unfinished when it is killed.
_WRITTEN = ("*.md", "*.json", "*.png", "*.html", "*.wav")
ReadPrompts = Callable[[str, str, float], Sequence[Prompt]]


def main(argv: Sequence[str], read_prompts: ReadPrompts, read_table: ReadTable) -> None:
    """``run`` of the command line ``argv``."""
    run(parser().parse_args(argv), read_prompts, read_table)


def run(options: argparse.Namespace, read_prompts: ReadPrompts, read_table: ReadTable) -> None:
    """Evaluates, or combines what was evaluated, and prints the tables.

    Args:
        options: as ``zoo.evaluation.options.parser`` parses them.
        read_prompts: ``(path, negative, seconds)`` -> the prompts of a file that people write.
        read_table: ``(path, column ...)`` -> a table that people write.

    Raises:
        UserError: for options that contradict each other, and for all that cannot be evaluated.
        OSError: for files that are not there, or cannot be written.
    """
    check(options)
    check_writable(options.out / RESULTS)
    for folder in (options.out, *(options.out / "clips" / role for role in (ORIGINAL, TRAINED))):
        clear_after_killed(folder, *_WRITTEN)
    if options.combine:
        results = _combined(options)
    else:
        results = evaluate(options, read_prompts, read_table)
    print(publish(options.out, results, options.players), end="")


@dataclass(frozen=True)
class _Request:
    """What is evaluated, and how its clips are made.

    - ``sides``: role -> folder of clips, or name of a model; the evaluated one first.
    - ``prompts``: those to sample; of folders, those that lend their labels.
    """

    options: argparse.Namespace
    config: Configuration
    sampling: SamplingSettings
    sides: dict[str, str]
    prompts: tuple[Prompt, ...]

    @property
    def role(self) -> str:
        """Of what is evaluated; the other side is its baseline."""
        return next(iter(self.sides))

    def is_folder(self, role: str) -> bool:
        if role == self.role:
            return bool(self.options.generations)
        return is_generations(self.sides[role])

    def adapters(self, role: str) -> list[tuple[str, float]]:
        return [parse_adapter(text) for text in self.options.adapter] if role == self.role else []

    def name(self, role: str) -> str:
        """Of the model in the tables."""
        if self.options.name and role == self.role:
            return self.options.name
        return _name(self.sides[role], self.adapters(role))


def _combined(options: argparse.Namespace) -> Results:
    results = combined({folder.name: read_results(folder) for folder in options.combine})
    picking = picking_of(
        options.pick_by,
        options.best_of,
        {facts.name: facts for facts in results.scorers},
        results.picking,
        clips_per_prompt((one.role, [clip.id for clip in one.clips]) for one in results.sets),
    )
    return replace(results, picking=picking)


def evaluate(
    options: argparse.Namespace, read_prompts: ReadPrompts, read_table: ReadTable
) -> Results:
    """Samples where a model is named, and scores everything.

    Raises before the first clip is made where it can.
    """
    model = options.model or (BASE if options.config and not options.generations else None)
    config = configuration(options.config, model)
    names = options.rewards or (["config"] if config.reward else None)
    if names is None:
        raise UserError("--rewards is missing: name what scores the clips, such as embedded/mood")
    if "config" in names:
        config.require_own()
    scorers = open_scorers(names, config.reward, usable_device(options.device))
    request = _request(options, config, model, read_prompts)
    if request.prompts:
        check_prompts(scorers, request.prompts)
    folders = _folders(request, scorers, read_table)
    picking = _picking(request, names, scorers, folders)
    cache = ScoreCache(options.out / "scores.json")
    sets = []
    for role, place in request.sides.items():
        if role in folders:
            samples: tuple[Sample, ...] = folders[role]
            source: dict[str, Any] = {"folder": Path(place).name}
        else:
            samples, source = _sampled(request, role)
        setting = options.setting or _setting(request, folders, samples)
        _check_unique(request.name(role), samples)
        with _bar(f"scoring {role}") as progress:
            clips = scored_clips(
                samples, scorers, cache, options.batch_size, options.device, progress
            )
        sets.append(ClipSet(request.name(role), setting, role, clips, source))
    sets.sort(key=lambda one: one.role)  # original before trained, as in the paper's tables
    return Results(tuple(scorer.facts for scorer in scorers), tuple(sets), picking)


def _picking(
    request: _Request,
    names: Sequence[str],
    scorers: Sequence[OpenScorer],
    folders: Mapping[str, Sequence[Sample]],
) -> Picking | None:
    """As the options say; for a trained model without such options, by the reward of its run."""
    options = request.options
    opened = {word: scorer.facts for word, scorer in zip(names, scorers, strict=True)}
    opened |= {scorer.facts.name: scorer.facts for scorer in scorers}
    own = "config" if "config" in names else node_name(request.config.reward or {})
    made = [prompt.id for prompt in request.prompts] * (options.samples or SAMPLES)
    prompts = {
        role: [sample.prompt.id for sample in folders[role]] if role in folders else made
        for role in request.sides
    }
    is_trained = TRAINED in request.sides
    return picking_of(
        options.pick_by,
        options.best_of,
        opened,
        own if is_trained else None,
        clips_per_prompt(prompts.items()),
    )


def _request(
    options: argparse.Namespace,
    config: Configuration,
    model: str | None,
    read_prompts: ReadPrompts,
) -> _Request:
    asked = PartialSampling(
        options.steps,
        options.guidance,
        options.eta,
        negative=options.negative,
        seconds=options.seconds,
    )
    is_folder = model is not None and Path(model).is_dir()
    recorded = recorded_sampling(model) if is_folder else PartialSampling()
    sampling = merged(asked, config.facts.evaluation, recorded)
    if options.prompts is not None:
        prompts = tuple(read_prompts(options.prompts, sampling.negative, sampling.seconds))
    else:
        prompts = config.prompts(options.which or WHICH[0]) if is_sampled(options) else ()
    if options.role or options.baseline:
        role = options.role or TRAINED
    else:
        role = CLIPS if options.generations else _role(model, options.adapter)
    sides = {role: options.generations or model}
    if options.baseline:
        sides[ORIGINAL] = options.baseline
    return _Request(options, config, sampling, sides, prompts)


def _folders(
    request: _Request, scorers: Sequence[OpenScorer], read_table: ReadTable
) -> dict[str, tuple[Sample, ...]]:
    """Role -> clips, of the sides that are folders."""
    label_keys = list(dict.fromkeys(one.label_key for one in scorers if one.label_key))
    folders = {}
    for role, place in request.sides.items():
        if not request.is_folder(role):
            continue
        table = request.options.table if role == request.role else None
        samples = folder_samples(Path(place), table, read_table, label_keys, request.prompts)
        check_prompts(scorers, [sample.prompt for sample in samples])
        folders[role] = samples
    return folders


def _role(model: str, adapters: Sequence[str]) -> str:
    """Trained for a model with adapters, a run, an adapter or an export; original for others."""
    if adapters:
        return TRAINED
    folder = None
    if model != BASE:
        with suppress(FileNotFoundError):
            folder = find(model)
    if folder is None or not folder.is_dir():
        return ORIGINAL
    if is_run(folder):
        return TRAINED
    config = read_config(folder) if (folder / CONFIG_FILE).is_file() else {}
    return TRAINED if config.get("kind") == "adapter" or config.get("training") else ORIGINAL


def _name(place: str, adapters: Sequence[tuple[str, float]]) -> str:
    parts = [short_name(place) if Path(place).is_dir() else place]
    for adapter, strength in adapters:
        parts.append(Path(adapter).name + ("" if strength == 1 else f" x {strength:g}"))
    return " + ".join(parts)


def _setting(
    request: _Request, folders: dict[str, tuple[Sample, ...]], samples: Sequence[Sample]
) -> str:
    """One for both sides: how they were sampled, or the name of the evaluated folder."""
    if folders:
        return Path(request.sides[request.role]).resolve().name
    lengths = sorted({sample.prompt.seconds for sample in samples})
    shown = "-".join(f"{seconds:g}" for seconds in dict.fromkeys((lengths[0], lengths[-1])))
    return f"{request.sampling.steps}-step, {shown} sec."


def _sampled(request: _Request, role: str) -> tuple[tuple[Sample, ...], dict[str, Any]]:
    """The clips of a model, made now, and where they came from."""
    options = request.options
    model = request.sides[role]
    adapters = request.adapters(role)
    folder = options.out / "clips" / role
    backbone = open_backbone(model, adapters, request.config, options.device)
    first = SEED if options.seed is None else options.seed
    seeds = range(first, first + (options.samples or SAMPLES))
    facts = {"model": _name(model, ()), "adapters": [list(adapter) for adapter in adapters]}
    with _bar(f"sampling {folder.name}") as progress:
        return model_clips(
            backbone,
            request.prompts,
            seeds,
            request.sampling,
            folder,
            facts,
            options.batch_size,
            progress,
        )


def _check_unique(name: str, samples: Sequence[Sample]) -> None:
    """Raises ``UserError`` for two clips of one prompt and seed, which would count twice."""
    prompts = [sample.prompt.id for sample in samples]
    counts = Counter(zip(prompts, sample_numbers(samples), strict=True))
    doubled = next((key for key, count in counts.items() if count > 1), None)
    if doubled is not None:
        raise UserError(
            f"{name}: two clips answer prompt {doubled[0]!r} with seed {doubled[1]}; a clip must"
            " not count twice"
        )


class _bar:
    """``with _bar(title) as progress``: a bar that ``progress(done, total)`` moves."""

    def __init__(self, title: str) -> None:
        from rich.progress import Progress

        self.bar = Progress()
        self.title = title

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        task = self.bar.add_task(self.title, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def publish(out: Path, results: Results, players: int) -> str:
    """Writes every file of an evaluation, all or none of them.

    Returns:
        The tables as Markdown.

    Raises:
        UserError: as ``write_page``.
        OSError: where the files cannot be written.
    """
    first, second, parts = all_tables(results)
    beside = best_of_n_table(results)
    if beside is not None:
        second.append(beside)
    texts = {"table1.md": as_markdown(first), "table2.md": as_markdown([*second, *parts])}
    # A full disk leaves the older files, not new tables next to an old report.
    with files_written_together(out) as together:
        for name, text in texts.items():
            (together / name).write_text(text, encoding="utf-8")
        found = summary(results) | {"best_of_n": plain_ways(results)}
        write_results(together / RESULTS, _relative_to(out, results), found)
        title = f"Evaluation: {out.resolve().name}"
        write_page(together, title, results, [*first, *second], parts, players)
    return as_markdown([*first, *second]) + f"\n{out / 'report.html'}\n"


def _relative_to(out: Path, results: Results) -> Results:
    """``results`` with the files of all clips as paths from ``out``."""
    sets = []
    for one in results.sets:
        clips = [replace(clip, file=os.path.relpath(clip.file, out)) for clip in one.clips]
        sets.append(replace(one, clips=tuple(clips)))
    return replace(results, sets=tuple(sets))
