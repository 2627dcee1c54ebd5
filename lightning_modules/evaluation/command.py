"""The command line of ``tools/evaluate.py``: Tables 1 and 2 of the music RLHF paper for any model, folder and rewards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_modules.evaluation.inputs import (
    BASE,
    WHICH,
    Configuration,
    ReadTable,
    configuration,
    folder_samples,
    is_generations,
    model_clips,
    open_backbone,
    parse_adapter,
)
from lightning_modules.evaluation.page import write_page
from lightning_modules.evaluation.results import (
    ORIGINAL,
    RESULTS,
    TRAINED,
    ClipSet,
    Results,
    combined,
    read_results,
    write_results,
)
from lightning_modules.evaluation.scores import (
    ScoreCache,
    Scorer,
    check_prompts,
    open_scorers,
    sample_numbers,
    scored_clips,
    short_name,
)
from lightning_modules.evaluation.tables import all_tables, as_markdown, summary
from zoo.files import written_beside
from zoo.generation import recorded_sampling
from zoo.sample_files import Sample
from zoo.sampling_settings import SamplingSettings, sampling_settings
from zoo.types import Prompt

SEED = 1_000_003  # far from the seeds of runs: no noise of an evaluation was trained on
ReadPrompts = Callable[[str, str, float], Sequence[Prompt]]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Accuracy by class, confusion, CLAP and other scores with intervals: table1.md, table2.md, results.json, "
        "confusion.png, tables.png, report.html.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--generations", help="folder of audio with samples.json (as tools/generate.py and runs write it) or a table")
    add("--table", type=Path, help="CSV, TSV or JSONL: file,prompt[,label][,seed] (default: prompts.csv in the folder)")
    add("--model", help="instead of a folder: a zoo name, a run folder or a model folder, sampled now; or base (with --config)")
    add("--adapter", action="append", default=[], metavar="NAME[=STRENGTH]", help="on the model; may be given several times")
    add("--baseline", help="what it is compared with: a folder of generations, a model, or base: the run's model untrained")
    add(
        "--config",
        action="append",
        default=[],
        help="YAML of a run: its prompts, sampling and reward (a run folder brings its own)",
    )
    add("--prompts", help=".txt, .csv or .jsonl; further columns are labels (mood). Default: those of the configuration")
    add("--which", choices=WHICH, default="held_out", help="which prompts of the configuration")
    add(
        "--rewards",
        nargs="+",
        metavar="NAME",
        help="zoo names, folders, .yaml (a _target_ or a run), or config: that of --config or the run",
    )
    add("--samples", type=int, default=25, help="clips a prompt")
    add("--seed", type=int, default=SEED, help="of a prompt's first clip; the next has the next seed, for all models alike")
    add("--steps", type=int, help="sampling steps (default: those of the run, else 20)")
    add("--guidance", type=float, help="guidance scale (default: that of the run, else 3)")
    add("--eta", type=float, help="share of fresh noise (default: that of the run, else 1)")
    add("--seconds", type=float, help="length of prompts that say none (default: that of the run)")
    add("--negative", help="negative of prompts that say none (default: that of the run)")
    add(
        "--setting", help='row of Table 2, such as "19-step, 10 sec."; trained and original models with the same one are compared'
    )
    add("--name", help="of the model in the tables (default: that of its folder)")
    add("--role", choices=[TRAINED, ORIGINAL], help="what a model without --baseline is in Table 2 (default: trained)")
    add("--combine", nargs="+", type=Path, metavar="DIR", help="evaluated folders: one set of tables of all, nothing is scored")
    add("--players", type=int, default=3, help="clips a class in report.html, from best to worst; 0 is none")
    add("--batch-size", type=int, default=8, help="samples at a time")
    add("--device", default="cpu", help="such as cpu, cuda, mps")
    add("--out", type=Path, default=Path("evaluation"), help="folder; an interrupted evaluation goes on in it")
    return parser


def main(argv: Sequence[str], read_prompts: ReadPrompts, read_table: ReadTable) -> None:
    """``read_prompts(path, negative, seconds)`` and ``read_table(path, column)`` read the files that people write.

    Raises ``ValueError`` and ``OSError``.
    """
    options = parser().parse_args(argv)
    _check(options)
    if options.combine:
        results = combined({folder.name: read_results(folder) for folder in options.combine})
    else:
        results = evaluate(options, read_prompts, read_table)
    print(publish(options.out, results, options.players), end="")


def _check(options: argparse.Namespace) -> None:
    sources = {"--generations": options.generations, "--model": options.model, "--combine": options.combine}
    given = [name for name, value in sources.items() if value]
    if len(given) > 1 or not (given or options.config):
        raise ValueError(f"say what is evaluated: one of {', '.join(sources)}, or --config (its untrained model); got "
                         f"{' and '.join(given) or 'none'}")  # fmt: skip
    if options.combine and (options.rewards or options.baseline):
        raise ValueError("--combine puts together what was evaluated already; --rewards and --baseline belong to the evaluations")
    if options.baseline and options.role == ORIGINAL:
        raise ValueError("with --baseline the model is the trained one; drop --role original, or the baseline")
    if options.adapter and not options.model:
        raise ValueError("--adapter is put on a model; give --model too")
    for name, least in (("samples", 1), ("batch_size", 1), ("players", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")


def evaluate(options: argparse.Namespace, read_prompts: ReadPrompts, read_table: ReadTable) -> Results:
    """Samples where a model is named, and scores everything. Raises before the first clip is made where it can."""
    model = options.model or (BASE if options.config and not options.generations else None)
    config = configuration(options.config, model)
    names = options.rewards or (["config"] if config.reward else None)
    if names is None:
        raise ValueError("--rewards is missing: name what scores the clips, such as embedded/mood")
    if "config" in names:
        config.require_own()
    scorers = open_scorers(names, config.reward, options.device)
    keys = list(dict.fromkeys(scorer.label_key for scorer in scorers if scorer.label_key))
    asked = {name: getattr(options, name) for name in ("steps", "eta", "negative", "seconds")}
    recorded = recorded_sampling(model) if model is not None and Path(model).is_dir() else {}
    how = sampling_settings({**asked, "guidance_scale": options.guidance}, config.settings, recorded, evaluation=True)
    wanted = _prompts(options, config, how, model, read_prompts)
    own = options.role or (ORIGINAL if model == BASE and not options.adapter and not options.baseline else TRAINED)
    sides = {own: options.generations or model} | ({ORIGINAL: options.baseline} if options.baseline else {})
    if wanted:
        check_prompts(scorers, wanted)
    folders = {}
    for role, place in sides.items():
        if options.generations if role == own else is_generations(place):
            folders[role] = folder_samples(Path(place), options.table if role == own else None, read_table, keys, wanted)
            check_prompts(scorers, [sample.prompt for sample in folders[role]])
    cache = ScoreCache(options.out / "scores.json")
    sets = []
    for role, place in sides.items():
        adapters = [parse_adapter(text) for text in options.adapter] if role == own else []
        if role in folders:
            samples, source = folders[role], {"folder": Path(place).name}
        else:
            samples, source = _sampled(options, place, adapters, config, how, wanted, options.out / "clips" / role)
        name = options.name if options.name and role == own else _name(place, adapters)
        setting = options.setting or _setting(sides, folders, how, samples)
        sets.append(_scored_set(name, setting, role, samples, source, scorers, cache, options))
    sets.sort(key=lambda one: one.role)  # original before trained, as in the paper's tables
    return Results(tuple(scorer.facts for scorer in scorers), tuple(sets))


def _prompts(
    options: argparse.Namespace, config: Configuration, how: SamplingSettings, model: str | None, read_prompts: ReadPrompts
) -> tuple[Prompt, ...]:
    """Those to sample; for a folder of generations those that lend their labels, if any were named."""
    if options.prompts is not None:
        return tuple(read_prompts(options.prompts, how.negative, how.seconds))
    is_sampled = model is not None or (options.baseline is not None and not is_generations(options.baseline))
    return config.prompts(options.which) if is_sampled else ()


def _name(place: str, adapters: Sequence[tuple[str, float]]) -> str:
    name = short_name(place) if Path(place).is_dir() else place
    return " + ".join(
        [name, *(Path(adapter).name + ("" if strength == 1 else f" x {strength:g}") for adapter, strength in adapters)]
    )


def _setting(sides: dict[str, str], folders: dict[str, Any], how: SamplingSettings, samples: Sequence[Sample]) -> str:
    """One for both sides: how they were sampled, or the name of the trained folder."""
    if folders:
        return Path(sides.get(TRAINED) or sides[ORIGINAL]).resolve().name
    lengths = sorted({sample.prompt.seconds for sample in samples})
    return f"{how.steps}-step, {'-'.join(f'{seconds:g}' for seconds in dict.fromkeys((lengths[0], lengths[-1])))} sec."


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
    seeds = range(options.seed, options.seed + options.samples)
    facts = {"model": _name(model, ()), "adapters": [list(adapter) for adapter in adapters]}
    with _bar(f"sampling {folder.name}") as progress:
        return model_clips(backbone, prompts, seeds, how, folder, facts, options.batch_size, progress)


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
    keys = [(sample.prompt.id, number) for sample, number in zip(samples, sample_numbers(samples), strict=True)]
    doubled = next((key for key in keys if keys.count(key) > 1), None)
    if doubled is not None:
        raise ValueError(f"{name}: two clips answer prompt {doubled[0]!r} with seed {doubled[1]}; a clip must not count twice")
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
    """Writes every file of an evaluation and gives the tables as Markdown."""
    first, second, parts = all_tables(results)
    texts = {"table1.md": as_markdown(first), "table2.md": as_markdown([*second, *parts])}
    for name, text in texts.items():
        with written_beside(out / name) as part:
            part.write_text(text, encoding="utf-8")
    here = [replace(one, clips=tuple(replace(c, file=os.path.relpath(c.file, out)) for c in one.clips)) for one in results.sets]
    write_results(out / RESULTS, replace(results, sets=tuple(here)), summary(results))
    write_page(out, f"Evaluation: {out.resolve().name}", results, [*first, *second, *parts], players)
    return as_markdown([*first, *second]) + f"\n{out / 'report.html'}\n"
