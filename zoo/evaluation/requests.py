"""Which options of ``tools/evaluate.py`` go together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zoo.errors import UserError
from zoo.evaluation.inputs import is_generations
from zoo.evaluation.results import ORIGINAL, RESULTS

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
_LEAST = (("samples", 1), ("batch_size", 1), ("players", 0), ("seed", 0), ("best_of", 1))


def check(options: argparse.Namespace) -> None:
    """Raises ``UserError`` for options that contradict each other or would have no effect."""
    _check_sources(options)
    _check_without_effect(options)
    for name, least in _LEAST:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")
    if (options.out / RESULTS).exists() and not options.overwrite:
        raise UserError(
            f"--out {options.out} holds the tables of an evaluation; give another --out, or"
            " --overwrite to replace them"
        )


def _check_sources(options: argparse.Namespace) -> None:
    """Raises ``UserError`` unless it is clear what is evaluated and compared."""
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
    if options.baseline and options.role == ORIGINAL:
        raise UserError(
            "with --baseline the model is the trained one; drop --role original, or the baseline"
        )
    is_itself = options.baseline in (options.generations, options.model)
    if options.baseline and is_itself and not options.adapter:
        raise UserError(
            f"{options.baseline} would be compared with itself; name another --baseline"
        )
    for place in (options.model, options.baseline):
        if place and place.endswith(".ckpt"):
            raise UserError(
                f"{place} is the state of a run, from which it resumes; name the run's folder,"
                " which has what it trained"
            )


def _check_without_effect(options: argparse.Namespace) -> None:
    """Raises ``UserError`` for an option without effect among the others."""
    if options.combine:
        _without(
            options,
            _OF_EVALUATIONS,
            "belongs to evaluations, and --combine puts together what was evaluated already",
        )
    if options.adapter and not options.model:
        raise UserError("--adapter is put on a model; give --model too")
    if options.table and not options.generations:
        raise UserError("--table says what the files of a folder answer; give --generations too")
    if not options.combine and not is_sampled(options):
        _without(
            options,
            _OF_SAMPLING,
            "is for models that are sampled, and here are only clips that were made already",
        )
    elif options.prompts is None:
        _without(
            options,
            ("seconds", "negative"),
            "belongs to --prompts; those of a configuration have their own (lay a second --config"
            " with other data over it)",
        )
    else:
        _without(
            options,
            ("which",),
            "chooses among the prompts of a configuration, and --prompts names others",
        )


def _without(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises ``UserError`` when one of the options was given."""
    for name in names:
        if getattr(options, name) not in (None, []):
            raise UserError(f"--{name} {why}")


def is_sampled(options: argparse.Namespace) -> bool:
    """Whether a model is sampled: the evaluated model, or the baseline of a folder of clips."""
    return not options.generations or (
        options.baseline is not None and not is_generations(options.baseline)
    )
