"""The command line of ``tools/annotate.py``: clips, a reward and the label file they become."""

from __future__ import annotations

import argparse
import glob
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands.generate import ReadPrompts, add_sampling, asked_sampling, parse_seeds
from zoo.errors import Stopped, UserError
from zoo.files import check_writable, clear_after_killed

if TYPE_CHECKING:  # imported after the arguments were read: --help needs no torch
    from lightning import LightningModule, Trainer

    from datamodules.batches import ClipFile
    from zoo.evaluation.scores import OpenScorer

_DESCRIPTION = """\
Scores clips by a reward and writes the scores as labels (RD records).

What is scored is one of
  a folder of generations with its samples.json,
  a folder of audio files named <id>_<caption>_<sample>.wav,
  label files of any dialect, with --audio-root,
  clips that --generate MODEL makes now for the prompts of --prompts FILE.

Scores are kept in OUT.journal as they come: the same command goes on after an interruption.
What cannot be scored is named in OUT.report.json, and the exit status is 1."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/annotate.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="one folder, or label files")
    add("--reward", required=True, help="a zoo name, a run or model folder, or a .yaml of a reward")
    add("--out", required=True, metavar="FILE", help="the label file to write")
    add("--format", default="attune", metavar="DIALECT", help="see docs/labels.md (attune)")
    add(
        "--mapping",
        metavar="RULE",
        help=(
            "scores to numbers from 0 to 1: unit (they are), cosine ((1 + s) / 2), sigmoid, rank"
            " (among all clips); default: unit for a reward that states such bounds"
        ),
    )
    add("--task", help="of the records: integrity, temporal, quality or relevance")
    add("--audio-root", metavar="DIR", help="clips of label files are below it")
    add(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a folder or file that has another name below --audio-root; may be repeated",
    )
    add(
        "--sample-rate-hz",
        type=int,
        metavar="HZ",
        help="what every clip is said to have; another rate is an error",
    )
    add("--overwrite", action="store_true", help="replace FILE if it is there")
    fresh = parser.add_argument_group("fresh generations")
    fresh.add_argument("--generate", metavar="MODEL", help="as tools/generate.py takes it")
    fresh.add_argument("--prompts", metavar="FILE", help=".txt, .csv or .jsonl")
    fresh.add_argument("--clips", metavar="DIR", help="where the clips go (default: OUT_clips)")
    add_sampling(fresh)
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--accelerator", default="auto", help="as Lightning knows it: cpu, gpu, mps, auto"
    )
    machine.add_argument(
        "--devices", type=int, default=1, help="processes per node, which share the clips"
    )
    machine.add_argument("--nodes", type=int, default=1, help="machines with the same folders")
    machine.add_argument(
        "--threads", type=int, default=1, help="of a CPU, per process; may change last digits"
    )
    machine.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    return parser


def main(argv: Sequence[str], read_prompts: ReadPrompts, labels: Callable[[], Any]) -> None:
    """Runs the command line ``argv``; exit status 1 where a clip could not be scored.

    Args:
        argv: the words of the command line.
        read_prompts: ``(path, negative, seconds)`` -> the prompts of a file.
        labels: gives the module ``datamodules.preferences.annotation``.

    Raises:
        UserError, OSError: before anything is scored, for what the command line asks; for scores
            that the mapping does not take; and when no clip could be scored.
    """
    options = parser().parse_intermixed_args(argv)
    _check(options)
    out = Path(options.out)
    # these take seconds
    from lightning_modules.annotation import Annotation, HeardClips, Shares
    from lightning_modules.rl.distributed import gather
    from lightning_modules.score_journal import Journal
    from zoo.evaluation.scores import open_scorers

    files = labels()
    (scorer,) = open_scorers([options.reward], None, "cpu", "--reward")
    mapping = _mapping(options, scorer, files.MAPPINGS)
    trainer = _trainer(options)
    if options.generate is not None:
        clips = _generated(options, scorer, trainer, read_prompts, files)
    elif Path(options.sources[0]).is_dir():
        clips = _of_folder(options, files)
    else:
        moved = [_pair(words) for words in options.map]
        clips = files.label_clips(
            options.sources, options.audio_root, moved, options.task, options.sample_rate_hz
        )
    files.check_form(clips, out, options.format)
    journal = Journal(f"{out}.journal")
    known = journal.read()
    name = reward_id(scorer, options.reward)
    module = Annotation(scorer.opened, name, journal, known)
    heard = HeardClips(clips, name, dict(known))
    _say(trainer, _start_line(clips, scorer, known, name))
    if len(heard):
        _predict(trainer, module, Shares(heard, options.workers), f"{options.out}.journal")
    found = gather((module.scores, module.faults))
    if not trainer.is_global_zero:
        return
    scores = {row: score for own, _ in found for row, score in own.items()}
    faults = {row: fault for _, own in found for row, fault in own.items()}
    clear_after_killed(out.parent, glob.escape(out.name))
    unit = str(getattr(scorer.opened, "unit", ""))
    facts = files.ReportFacts(scorer.facts.name, name, unit)
    lost = files.write_annotation(clips, scores, faults, out, options.format, mapping, facts)
    print(f"wrote {len(scores)} records of {options.format} to {out}")
    for field, count in lost.items():
        print(f"{options.format} has no place for all of it: {field} of {count} records")
    bad = len(clips) - len(scores)
    if bad:
        print(f"left out {bad} of {len(clips)} clips, named in {files.report_path(out)}")
        raise SystemExit(1)


def _check(options: argparse.Namespace) -> None:
    """Raises ``UserError`` for options that contradict each other or would have no effect."""
    is_folder = bool(options.sources) and Path(options.sources[0]).is_dir()
    is_files = bool(options.sources) and not is_folder
    if bool(options.sources) == (options.generate is not None):
        raise UserError("say what is scored: a folder, label files, or --generate MODEL")
    absent = [source for source in options.sources if not Path(source).exists()]
    if absent:
        raise FileNotFoundError(f"there is no file or folder {absent[0]}")
    if is_folder and len(options.sources) > 1:
        raise UserError("one folder at a time; give each its own --out")
    for name, value, needed, of in (
        ("--audio-root", options.audio_root, is_files, "label files"),
        ("--prompts", options.prompts, options.generate is not None, "--generate"),
    ):
        if (value is not None) != needed:
            raise UserError(f"{name} {'is needed with' if needed else 'is for'} {of}")
    if options.clips is not None and options.generate is None:
        raise UserError("--clips is for --generate")
    if options.map and not is_files:
        raise UserError("--map is for label files")
    for name, least in (("devices", 1), ("nodes", 1), ("threads", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise UserError(f"invalid --{name} {getattr(options, name)}: expected >= {least}")
    if options.batch_size < 1:
        raise UserError(f"invalid --batch-size {options.batch_size}: expected >= 1")
    if Path(options.out).exists() and not options.overwrite:
        raise UserError(f"{options.out} exists; give another --out, or --overwrite to replace it")
    check_writable(options.out)


def _pair(text: str) -> tuple[str, str]:
    old, found, new = text.partition("=")
    if not (old and found and new):
        raise UserError(f"invalid --map {text!r}: expected OLD=NEW")
    return old, new


def _mapping(options: argparse.Namespace, scorer: OpenScorer, known: Mapping[str, object]) -> str:
    """The name of the mapping. Raises ``UserError`` where none is asked for and scores need one."""
    from zoo.errors import did_you_mean

    if options.mapping is not None:
        if options.mapping not in known:
            advice = did_you_mean(options.mapping, known)
            raise UserError(f"unknown --mapping {options.mapping!r}; {advice}")
        return options.mapping
    bounds = getattr(scorer.opened, "bounds", None)
    if bounds is not None and bounds[0] >= 0 and bounds[1] <= 1:
        return "unit"
    stated = "states no bounds" if bounds is None else f"runs from {bounds[0]:g} to {bounds[1]:g}"
    raise UserError(
        f"the score of {scorer.facts.name} {stated}, and a label file holds numbers from 0 to 1;"
        f" choose --mapping {', '.join(known)}"
    )


def reward_id(scorer: OpenScorer, asked: str) -> str:
    """Names a reward in journals (12 hex digits): by class, settings and weights.

    Where the object does not know its settings, what was asked for counts too: its name, or the
    content of its ``.yaml``.
    """
    if getattr(scorer.opened, "arguments", None) is not None:
        return scorer.facts.fingerprint
    told = asked
    if asked.endswith((".yaml", ".yml")):
        told = Path(asked).read_text(encoding="utf-8")
    return hashlib.sha256(f"{scorer.facts.fingerprint} {told}".encode()).hexdigest()[:12]


def _trainer(options: argparse.Namespace) -> Trainer:
    import lightning
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lightning_modules.annotation import CountProgress, CpuThreads
    from lightning_modules.progress import quieten_lightning

    quieten_lightning()
    is_shared = options.devices * options.nodes > 1
    try:
        return lightning.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy="ddp" if is_shared else "auto",
            use_distributed_sampler=False,
            callbacks=[CpuThreads(options.threads), CountProgress()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"--accelerator, --devices or --nodes: {error}") from error


def _of_folder(options: argparse.Namespace, files: Any) -> list[ClipFile]:
    from zoo.generations import INDEX, checked_entries, read_samples

    folder = Path(options.sources[0])
    is_run = any(folder.glob(f"audio/*/{INDEX}"))
    if not (folder / INDEX).is_file() and not is_run:
        return files.named_clips(folder, options.task, options.sample_rate_hz)
    samples = read_samples(folder, must_exist=False)
    stated = {entry["file"]: entry.get("seconds") for entry in checked_entries(folder)}
    rows = [(one.path, one.prompt, stated.get(one.path.name)) for one in samples]
    place = folder.resolve().name
    return files.prompted_clips(rows, place, options.task, options.sample_rate_hz)


def _generated(
    options: argparse.Namespace,
    scorer: OpenScorer,
    trainer: Trainer,
    read_prompts: ReadPrompts,
    files: Any,
) -> list[ClipFile]:
    """Makes the clips that are not there yet, each process its share."""
    from lightning_modules.annotation import MakeClips, Shares, clip_jobs
    from lightning_modules.rl.distributed import gather
    from lightning_modules.rl.prompt_checks import check_judged, too_long
    from zoo.evaluation.inputs import claimed_source
    from zoo.evaluation.scores import check_prompts
    from zoo.generations import INDEX, Sample, output_paths, write_index
    from zoo.loading import open_model

    model = options.generate
    how = asked_sampling(model, options)
    seeds = parse_seeds(options.seeds)
    prompts = read_prompts(options.prompts, how.negative, how.seconds)
    backbone = open_model(model, options.adapter, options.strength)
    check_prompts([scorer], prompts)
    check_judged([scorer.opened], prompts)
    long = too_long(backbone, [scorer.opened], prompts)
    if long:
        named = "; ".join(f"{name!r}: {why}" for name, why in list(long.items())[:5])
        raise UserError(f"{len(long)} of {len(prompts)} prompts are too long: {named}")
    folder = Path(options.clips or f"{Path(options.out).with_suffix('')}_clips")
    facts = {
        "model": model,
        "adapter": options.adapter,
        "strength": options.strength,
        "made_at_once": options.batch_size,
    }
    clear_after_killed(folder, INDEX, "source.json", "*.wav")
    claimed_source(backbone, prompts, how, folder, facts)
    paths = output_paths(prompts, seeds, f"{folder}/", "wav")
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    batches = clip_jobs(paths, jobs, options.batch_size)
    _say(trainer, f"{len(paths)} clips of {model} for {len(prompts)} prompts, in {folder}")
    _predict(trainer, MakeClips(backbone, how.sampler), Shares(batches), str(folder))
    gather(None)  # all processes have made their share
    if trainer.is_global_zero:
        samples = [Sample(path, *job) for path, job in zip(paths, jobs, strict=True)]
        write_index(folder, samples)
    rows = [(path, prompt, prompt.seconds) for path, (prompt, _) in zip(paths, jobs, strict=True)]
    place = folder.resolve().name
    return files.prompted_clips(rows, place, options.task, options.sample_rate_hz, model)


def _predict(trainer: Trainer, module: LightningModule, data: Any, kept_in: str) -> None:
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    except (KeyboardInterrupt, SystemExit) as ended:  # Lightning turns Ctrl-C into an exit
        if isinstance(ended, SystemExit) and not trainer.interrupted:
            raise
        raise Stopped(f"what is done is in {kept_in}; the same command goes on") from ended


def _start_line(
    clips: Sequence[ClipFile], scorer: OpenScorer, known: Mapping[str, Any], name: str
) -> str:
    bad = sum(bool(clip.fault) for clip in clips)
    own = sum(scored.reward == name for scored in known.values())
    line = f"{len(clips)} clips to score by {scorer.facts.name} ({name})"
    if bad:
        line += f", {bad} of them cannot be read"
    if own:
        line += f"; the journal holds {own} scores of it"
    if len(known) > own:
        line += f" and {len(known) - own} of other rewards, which are not used"
    return line


def _say(trainer: Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, flush=True)
