"""The command line of ``tools/evaluate.py``:

Tables 1 and 2 of the music RLHF paper for any model, folder and rewards.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError
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
from zoo.evaluation.results import (
    ORIGINAL,
    RESULTS,
    TRAINED,
    ClipSet,
    Results,
    combined,
    read_results,
    write_results,
)
from zoo.evaluation.scores import (
    ScoreCache,
    Scorer,
    check_prompts,
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
from zoo.hub.run_models import is_run, recorded_sampling
from zoo.hub.sampling_settings import PartialSampling, SamplingSettings, merged
from zoo.loading import usable_device
from zoo.types import Prompt

_OF_SAMPLING = ("samples", "seed", "steps", "guidance", "eta", "seconds", "negative", "which")
_OF_EVALUATIONS = (
    "baseline",
    "config",
    "prompts",
    "rewards",
    "setting",
    "name",
    "role",
    "adapter",
    "table",
    *_OF_SAMPLING,
)
# What an evaluation writes, and may leave unfinished when it is killed.
_WRITTEN = ("*.md", "*.json", "*.png", "*.html", "*.wav")
ReadPrompts = Callable[[str, str, float], Sequence[Prompt]]


def main(argv: Sequence[str], read_prompts: ReadPrompts, read_table: ReadTable) -> None:
    """``run`` of the command line ``argv``."""
    run(parser().parse_args(argv), read_prompts, read_table)


def run(options: argparse.Namespace, read_prompts: ReadPrompts, read_table: ReadTable) -> None:
    """``read_prompts(path, negative, seconds)`` and ``read_table(path, column)`` read the files
    that people write.

    Raises ``UserError`` and ``OSError``.
    """
    _check(options)
    check_writable(options.out / RESULTS)
    for folder in (options.out, *(options.out / "clips" / role for role in (ORIGINAL, TRAINED))):
        clear_after_killed(folder, *_WRITTEN)
    if options.combine:
        results = combined({folder.name: read_results(folder) for folder in options.combine})
    else:
        results = evaluate(options, read_prompts, read_table)
    print(publish(options.out, results, options.players), end="")


def _check(options: argparse.Namespace) -> None:
    """What contradicts itself, and options that would have no effect. Raises ``UserError``."""
    sources = {
        "--generations": options.generations,
        "--model": options.model,
        "--combine": options.combine,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) > 1 or not (given or options.config):
        raise UserError(
            f"say what is evaluated: one of {', '.join(sources)}, or --config (its untrained"
            f" model); got {' and '.join(given) or 'none'}"
        )
    if options.combine:
        _without(
            options,
            _OF_EVALUATIONS,
            "belongs to evaluations, and --combine puts together what was evaluated already",
        )
    if options.baseline and options.role == ORIGINAL:
        raise UserError(
            "with --baseline the model is the trained one; drop --role original, or the baseline"
        )
    if (
        options.baseline
        and options.baseline in (options.generations, options.model)
        and not options.adapter
    ):
        raise UserError(
            f"{options.baseline} would be compared with itself; name another --baseline"
        )
    for place in (options.model, options.baseline):
        if place and place.endswith(".ckpt"):
            raise UserError(
                f"{place} is the state of a run, from which it resumes; name the run's folder,"
                " which has what it trained"
            )
    if options.adapter and not options.model:
        raise UserError("--adapter is put on a model; give --model too")
    if options.table and not options.generations:
        raise UserError("--table says what the files of a folder answer; give --generations too")
    if not options.combine and not _is_sampled(options):
        _without(
            options,
            _OF_SAMPLING,
            "is for models that are sampled, and here are only clips that were made already",
        )
    elif options.prompts is None:
        how = (
            "belongs to --prompts; those of a configuration have their own (lay a second --config"
            " with other data over it)"
        )
        _without(options, ("seconds", "negative"), how)
    else:
        _without(
            options,
            ("which",),
            "chooses among the prompts of a configuration, and --prompts names others",
        )
    for name, least in (("samples", 1), ("batch_size", 1), ("players", 0), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")


def _without(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises ``UserError`` when one of the options was given all the same."""
    for name in names:
        if getattr(options, name) not in (None, []):
            raise UserError(f"--{name} {why}")


def _is_sampled(options: argparse.Namespace) -> bool:
    """Whether clips are made for the occasion: of the model, or of the baseline of a folder of
    clips.
    """
    return not options.generations or (
        options.baseline is not None and not is_generations(options.baseline)
    )


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
    keys = list(dict.fromkeys(scorer.label_key for scorer in scorers if scorer.label_key))
    asked = PartialSampling(
        options.steps,
        options.guidance,
        options.eta,
        negative=options.negative,
        seconds=options.seconds,
    )
    is_folder = model is not None and Path(model).is_dir()
    recorded = recorded_sampling(model) if is_folder else PartialSampling()
    how = merged(asked, config.facts.evaluation, recorded)
    wanted = _prompts(options, config, how, read_prompts)
    own = options.role or (
        TRAINED if options.baseline or options.generations else _role(model, options.adapter)
    )
    sides = {own: options.generations or model} | (
        {ORIGINAL: options.baseline} if options.baseline else {}
    )
    if wanted:
        check_prompts(scorers, wanted)
    folders = {}
    for role, place in sides.items():
        if options.generations if role == own else is_generations(place):
            folders[role] = folder_samples(
                Path(place), options.table if role == own else None, read_table, keys, wanted
            )
            check_prompts(scorers, [sample.prompt for sample in folders[role]])
    cache = ScoreCache(options.out / "scores.json")
    sets = []
    for role, place in sides.items():
        adapters = [parse_adapter(text) for text in options.adapter] if role == own else []
        if role in folders:
            samples, source = folders[role], {"folder": Path(place).name}
        else:
            samples, source = _sampled(
                options, place, adapters, config, how, wanted, options.out / "clips" / role
            )
        name = options.name if options.name and role == own else _name(place, adapters)
        setting = options.setting or _setting(sides, folders, how, samples)
        sets.append(_scored_set(name, setting, role, samples, source, scorers, cache, options))
    sets.sort(key=lambda one: one.role)  # original before trained, as in the paper's tables
    return Results(tuple(scorer.facts for scorer in scorers), tuple(sets))


def _role(model: str, adapters: Sequence[str]) -> str:
    """Trained: with adapters, a run, an adapter and what was exported from a run; everything else
    is a model as it was found.
    """
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


def _prompts(
    options: argparse.Namespace,
    config: Configuration,
    how: SamplingSettings,
    read_prompts: ReadPrompts,
) -> tuple[Prompt, ...]:
    """Those to sample; for a folder of generations those that lend labels, if any."""
    if options.prompts is not None:
        return tuple(read_prompts(options.prompts, how.negative, how.seconds))
    return config.prompts(options.which or WHICH[0]) if _is_sampled(options) else ()


def _name(place: str, adapters: Sequence[tuple[str, float]]) -> str:
    name = short_name(place) if Path(place).is_dir() else place
    return " + ".join(
        [
            name,
            *(
                Path(adapter).name + ("" if strength == 1 else f" x {strength:g}")
                for adapter, strength in adapters
            ),
        ]
    )


def _setting(
    sides: dict[str, str], folders: dict[str, Any], how: SamplingSettings, samples: Sequence[Sample]
) -> str:
    """One for both sides: how they were sampled, or the name of the trained folder."""
    if folders:
        return Path(sides.get(TRAINED) or sides[ORIGINAL]).resolve().name
    lengths = sorted({sample.prompt.seconds for sample in samples})
    return (
        f"{how.steps}-step,"
        f" {'-'.join(f'{seconds:g}' for seconds in dict.fromkeys((lengths[0], lengths[-1])))} sec."
    )


def _sampled(
    options: argparse.Namespace,
    model: str,
    adapters: Sequence[tuple[str, float]],
    config: Configuration,
    how: SamplingSettings,
    prompts: Sequence[Prompt],
    folder: Path,
) -> tuple[tuple[Sample, ...], dict[str, Any]]:
    backbone = open_backbone(model, adapters, config, options.device)
    first = SEED if options.seed is None else options.seed
    seeds = range(first, first + (options.samples or SAMPLES))
    facts = {"model": _name(model, ()), "adapters": [list(adapter) for adapter in adapters]}
    with _bar(f"sampling {folder.name}") as progress:
        return model_clips(
            backbone, prompts, seeds, how, folder, facts, options.batch_size, progress
        )


def _scored_set(
    name: str,
    setting: str,
    role: str,
    samples: Sequence[Sample],
    source: dict[str, Any],
    scorers: Sequence[Scorer],
    cache: ScoreCache,
    options: argparse.Namespace,
) -> ClipSet:
    keys = [
        (sample.prompt.id, number)
        for sample, number in zip(samples, sample_numbers(samples), strict=True)
    ]
    doubled = next((key for key, count in Counter(keys).items() if count > 1), None)
    if doubled is not None:
        raise UserError(
            f"{name}: two clips answer prompt {doubled[0]!r} with seed {doubled[1]}; a clip must"
            " not count twice"
        )
    with _bar(f"scoring {role}") as progress:
        clips = scored_clips(samples, scorers, cache, options.batch_size, options.device, progress)
    return ClipSet(name, setting, role, clips, source)


class _bar:
    """``with _bar(title) as progress``: a bar that ``progress(done, total)`` moves."""

    def __init__(self, title: str) -> None:
        from rich.progress import Progress

        self.bar, self.title = Progress(), title

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        task = self.bar.add_task(self.title, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def publish(out: Path, results: Results, players: int) -> str:
    """Writes every file of an evaluation, all or none of them, and gives the tables as Markdown.

    Raises what ``write_results`` and ``write_page`` raise.
    """
    first, second, parts = all_tables(results)
    texts = {"table1.md": as_markdown(first), "table2.md": as_markdown([*second, *parts])}
    here = [
        replace(one, clips=tuple(replace(c, file=os.path.relpath(c.file, out)) for c in one.clips))
        for one in results.sets
    ]
    # A full disk leaves the older files, not new tables beside an old report.
    with files_written_together(out) as together:
        for name, text in texts.items():
            (together / name).write_text(text, encoding="utf-8")
        write_results(together / RESULTS, replace(results, sets=tuple(here)), summary(results))
        title = f"Evaluation: {out.resolve().name}"
        write_page(together, title, results, [*first, *second], parts, players)
    return as_markdown([*first, *second]) + f"\n{out / 'report.html'}\n"
