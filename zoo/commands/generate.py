"""The command line of ``tools/generate.py``."""

from __future__ import annotations

import argparse
import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import Stopped, UserError
from zoo.files import (
    AUDIO_FORMATS,
    check_writable,
    clear_after_killed,
    files_written_together,
)

if TYPE_CHECKING:  # modules that need torch are imported after parsing, so that --help is quick
    from zoo.diffusion import Sampler
    from zoo.generations import Sample
    from zoo.hub.sampling_settings import SamplingSettings
    from zoo.types import Prompt, Waveform

ReadPrompts = Callable[[str, str, float], "Sequence[Prompt]"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/generate.py",
        description="Turn prompts into audio files.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="a zoo name (embedded/music), a run folder, or a model folder")
    add("prompts", nargs="*", help="what should be heard")
    add(
        "--batch-file",
        help=(
            ".txt (one prompt per line), .csv or .jsonl (text, and id, negative, seconds if wanted)"
        ),
    )
    add(
        "--out",
        default="generated",
        help="folder (gets an index, samples.json), or a file name for a single sample",
    )
    add("--format", default="wav", choices=[suffix[1:] for suffix in AUDIO_FORMATS])
    add_sampling(parser)
    add(
        "--best-of",
        type=int,
        metavar="N",
        help=(
            "keep the best of N samples of a prompt by the reward of --by: of N seeds in a row,"
            " from each of --seeds on"
        ),
    )
    add("--by", metavar="REWARD", help="zoo name or folder of the reward that chooses")
    add("--device", default="cpu", help="such as cpu, cuda, mps")
    add("--overwrite", action="store_true", help="replace files that are there")
    return parser


def add_sampling(parser: Any) -> None:
    """Adds the options that say how clips are made to a parser, or to a group of it."""
    add = parser.add_argument
    add(
        "--seeds",
        default="0",
        help="such as 0 or 0,1,2 or 0-7; every prompt is sampled with every seed",
    )
    add("--steps", type=int, help="sampling steps (default: those of the run, else 20)")
    add(
        "--guidance",
        type=float,
        help="guidance scale, 1 for none (default: that of the run, else 3)",
    )
    add(
        "--eta",
        type=float,
        help="0 deterministic, 1 fresh noise in every step (default: that of the run, else 1)",
    )
    add("--seconds", type=float, help="length (default: that of the run, else 4.096)")
    add("--negative", help="what should not be heard (default: that of the run, else nothing)")
    add("--adapter", help="adapter folder (default: that of the run folder)")
    add(
        "--strength", type=float, default=1.0, help="of the adapter: 0 the base model, 1 as trained"
    )
    add("--batch-size", type=int, default=8, help="samples at a time")


def asked_sampling(model: str, options: argparse.Namespace) -> SamplingSettings:
    """How ``model`` is sampled, by the options of ``add_sampling``, else as in its run.

    Raises ``UserError``, also for --strength without an adapter.
    """
    from zoo.hub.resolve import resolve
    from zoo.hub.run_facts import read_facts
    from zoo.hub.runs import recorded_sampling, run_settings
    from zoo.hub.sampling_settings import PartialSampling, merged

    asked = PartialSampling(
        options.steps,
        options.guidance,
        options.eta,
        negative=options.negative,
        seconds=options.seconds,
    )
    facts = read_facts(model, run_settings(model))
    how = merged(asked, facts.sampling, recorded_sampling(model))
    if options.adapter is None and options.strength != 1:
        own = [
            resolve(model).folder / name for name in ("adapter", "adapter_config.json")
        ]  # a run's, an exported one
        if not any(path.exists() for path in own):
            raise UserError(
                f"--strength needs an adapter, and {model} has none; give --adapter too"
            )
    return how


def main(argv: Sequence[str], read_prompts: ReadPrompts) -> None:
    """Runs the command line ``argv``; ``read_prompts(path, negative, seconds)`` reads a batch file.

    Raises ``UserError`` and ``OSError`` before anything is written.
    """
    options = parser().parse_intermixed_args(argv)
    from zoo.generations import checked_entries, output_paths
    from zoo.loading import open_model
    from zoo.types import Prompt

    how = asked_sampling(options.model, options)
    seeds = parse_seeds(options.seeds)
    prompts = [
        Prompt(text, text.strip(), how.negative, how.seconds)
        for text in options.prompts
        if text.strip()
    ]
    if len(prompts) < len(options.prompts):
        raise UserError("a prompt must not be empty; say what should be heard")
    if options.batch_file is not None:
        prompts += read_prompts(options.batch_file, how.negative, how.seconds)
    if not prompts:
        raise UserError("no prompt: write one after the model, or give --batch-file")
    groups = candidates(seeds, options.best_of, options.by)
    paths = output_paths(prompts, [_name(group) for group in groups], options.out, options.format)
    taken = [path for path in paths if path.exists()]
    if taken and not options.overwrite:
        raise UserError(
            f"{taken[0]} exists{f' (and {len(taken) - 1} more)' if taken[1:] else ''}; "
            "give another --out, or --overwrite to replace"
        )
    if Path(options.out).is_dir():
        checked_entries(Path(options.out))
    check_writable(paths[0])
    reward = None if options.by is None else _opened_reward(options.by, options.device, prompts)
    backbone = open_model(options.model, options.adapter, options.strength, options.device)
    folder = None if Path(options.out).suffix.lower() in AUDIO_FORMATS else Path(options.out)
    maker = Maker(backbone, how.sampler, options.batch_size, options.by, reward)
    _generate_files(maker, prompts, groups, paths, folder)
    if options.best_of is not None:
        print(_price(how.sampler, options.best_of, options.by))


@dataclass(frozen=True)
class Maker:
    """Makes samples; of several seeds it keeps the best by ``reward``, which is called ``by``."""

    backbone: Any
    sampler: Sampler
    batch_size: int
    by: str | None = None
    reward: Any = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[int]],
        paths: Sequence[Path],
    ) -> list[tuple[Sample, Waveform]]:
        """One sample per prompt and group of seeds, for the file of its place in ``paths``."""
        from zoo.evaluation.best_of_n import generate_best
        from zoo.generation import generate_each
        from zoo.generations import Choice, Sample

        if self.reward is None:
            jobs = [(prompt, seed) for prompt in prompts for (seed,) in groups]
            waves = generate_each(self.backbone, jobs, self.sampler, self.batch_size)
            samples = [Sample(path, *job) for path, job in zip(paths, jobs, strict=True)]
            return list(zip(samples, waves, strict=True))
        assert self.by is not None  # the name of the reward
        made = []
        for row, prompt in enumerate(prompts):
            for place, seeds in enumerate(groups):
                (one,) = generate_best(
                    self.backbone, self.reward, [prompt], seeds, self.sampler, self.batch_size
                )
                choice = Choice(self.by, one.seeds, one.scores)
                path = paths[row * len(groups) + place]
                made.append((Sample(path, prompt, one.seed, max(one.scores), choice), one.wave))
        return made


def _generate_files(
    maker: Maker,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[int]],
    paths: Sequence[Path],
    folder: Path | None,
) -> None:
    """Makes the files, a few prompts at a time, so that finished ones are on disk and in the index.

    First removes what a killed call was about to write there.
    """
    from rich.progress import track

    from zoo.audio_files import write_audio
    from zoo.generations import INDEX, write_index

    if folder is None:
        clear_after_killed(paths[0].parent, glob.escape(paths[0].name))
    else:
        clear_after_killed(folder, INDEX, *(f"*{suffix}" for suffix in AUDIO_FORMATS))
    count = max(1, maker.batch_size // sum(map(len, groups)))
    written = 0
    try:
        for start in track(range(0, len(prompts), count), description=f"{len(paths)} samples"):
            own = slice(start * len(groups), (start + count) * len(groups))
            made = maker(prompts[start : start + count], groups, paths[own])
            if folder is None:
                write_audio(paths[0], made[0][1])
                continue
            with files_written_together(folder) as part:  # a file and its row in the index, or none
                for sample, wave in made:
                    write_audio(part / sample.path.name, wave)
                write_index(folder, [sample for sample, _ in made], part)
            written += len(made)
    except KeyboardInterrupt as stop:
        raise Stopped(_way_on(written, len(paths), folder)) from stop
    for path in paths:
        print(path)


def candidates(seeds: Sequence[int], best_of: int | None, by: str | None) -> list[range]:
    """The seeds that each sample is chosen from: itself alone, or ``best_of`` in a row from it.

    Raises ``UserError`` for a number without a reward or the reverse, a number below 2, and seeds
    whose rows overlap.
    """
    if (best_of is None) != (by is None):
        raise UserError(
            "--best-of N and --by REWARD belong together: the reward chooses among N samples"
        )
    if best_of is None:
        return [range(seed, seed + 1) for seed in seeds]
    if best_of < 2:
        raise UserError(f"invalid --best-of {best_of}: expected a whole number >= 2")
    ordered = sorted(seeds)
    for first, second in zip(ordered, ordered[1:]):
        if second - first < best_of:
            raise UserError(
                f"--seeds {first},{second} with --best-of {best_of}: both would choose among seed"
                f" {second}; give seeds that are {best_of} apart, such as {first},{first + best_of}"
            )
    return [range(seed, seed + best_of) for seed in seeds]


def _name(seeds: range) -> str:
    """In file names: ``3``, or ``0-3``."""
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"


def _opened_reward(name: str, device: str, prompts: Sequence[Prompt]) -> Any:
    """The reward of ``--by``. Raises ``UserError`` for another model, and unfit prompts."""
    from zoo.loading import load
    from zoo.types import is_scorer

    reward = load(name, device)
    if not is_scorer(reward):
        raise UserError(
            f"--by {name} is a {type(reward).__name__}, which scores nothing; name a reward, such"
            " as embedded/clap"
        )
    if hasattr(reward, "check_prompts"):
        reward.check_prompts(prompts)
    found = dict(reward.too_long(prompts)) if hasattr(reward, "too_long") else {}
    for prompt, why in found.items():
        raise UserError(f"--by {name} cannot read all of the prompt {prompt!r}: {why}; shorten it")
    return reward


def _price(sampler: Sampler, n: int, by: str) -> str:
    from zoo.evaluation.best_of_n import cost

    once, price = cost(sampler), cost(sampler, n)
    return (
        f"each is the best of {n} by {by}: {price.network_evaluations} network evaluations (a"
        f" single sample: {once.network_evaluations}) and {price.reward_calls} reward calls"
    )


def _way_on(written: int, total: int, folder: Path | None) -> str:
    if not written:
        return "no sample was written; the same command starts again"
    return (
        f"{written} of {total} samples are whole and in {folder}; the same command with "
        "--overwrite makes all of them again, or ask for the others with another --out"
    )


def parse_seeds(text: str) -> list[int]:
    """``"0,3-5"`` as [0, 3, 4, 5].

    Raises ``UserError`` for anything else, a doubled seed, or more than 10,000.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if (
            match is None
            or int(match[2] or match[1]) < int(match[1])
            or int(match[2] or match[1]) - int(match[1]) >= 10_000
        ):
            raise UserError(f"--seeds {text!r}: expected whole numbers such as 0 or 0,1,2 or 0-7")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r} names a seed twice")
    return seeds
