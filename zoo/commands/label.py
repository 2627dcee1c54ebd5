"""``label``, ``results`` and ``export`` of ``tools/listen.py``: people label clips on a page."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.files import check_writable, clear_after_killed

if TYPE_CHECKING:  # imports of torch wait until the arguments are parsed, for a quick --help
    from zoo.types import Preference


@dataclass(frozen=True)
class LabelFormats:
    """What these commands need of label files (``datamodules/preferences``).

    zoo imports no data modules, so ``tools/listen.py`` brings them together.

    - ``aggregate(records, rule)``: the records with a label each.
    - ``write(records, path, dialect, found)``: writes a file and returns field -> in how many
      records it could not be kept.
    - ``agreement(records)``: Krippendorff's alpha; None where it is not defined.
    """

    aggregate: Callable[[Sequence[Preference], str], Sequence[Preference]]
    write: Callable[[Sequence[Preference], Path, str, Callable[[str], Path]], dict[str, int]]
    agreement: Callable[[Sequence[Preference]], float | None]


def add_label_commands(commands: Any, formats: LabelFormats) -> None:
    """Adds the three commands to the subparsers of ``tools/listen.py``."""
    _add_label(commands)
    _add_results(commands, formats)
    _add_export(commands, formats)


def _add_label(commands: Any) -> None:
    add = commands.add_parser(
        "label",
        help="serve a page where people label clips (needs the extra app)",
        allow_abbrev=False,
    )
    add.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="of tools/generate.py or RUN/audio/after; one per system",
    )
    add.add_argument(
        "--task",
        required=True,
        help="integrity, temporal, pairwise, quality, relevance, or mos (both of these)",
    )
    add.add_argument(
        "--votes",
        required=True,
        metavar="FILE",
        help="SQLite file on a disk of this machine; a study continues where it stopped",
    )
    add.add_argument(
        "--per-rater", type=int, metavar="N", help="clips or pairs for each rater (default: all)"
    )
    add.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="hidden repeats (default: %(default)s)"
    )
    add.add_argument(
        "--negatives",
        type=int,
        default=2,
        metavar="N",
        help="hidden clear negatives (default: %(default)s)",
    )
    add.add_argument(
        "--pairs-per-prompt", type=int, metavar="N", help="for --task pairwise (default: all)"
    )
    add.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="of the systems, one per folder; raters never see them (default: the folders' names)",
    )
    add.add_argument(
        "--headphones",
        default="check",
        help="off, check (saves the result), or require (default: %(default)s)",
    )
    add.add_argument(
        "--no-questionnaire", action="store_true", help="ask nothing before the completion code"
    )
    add.add_argument(
        "--own-level",
        action="store_true",
        help="play pairs at their own level, not both at that of the quieter clip",
    )
    add.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; the default is this machine only, another one needs the token"
        " that is printed",
    )
    add.add_argument(
        "--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)"
    )
    add.set_defaults(run=_label)


def _add_results(commands: Any, formats: LabelFormats) -> None:
    add = commands.add_parser(
        "results", help="raters, checks, agreement and means of a labelling", allow_abbrev=False
    )
    add.add_argument("votes", metavar="FILE", help="of label --votes; it may be in use")
    _add_min_passed(add)
    add.add_argument("--out", metavar="PAGE", help="also write this HTML page, with a plot")
    add.add_argument("--overwrite", action="store_true", help="replace an existing page")
    add.set_defaults(run=lambda options: _results(options, formats))


def _add_export(commands: Any, formats: LabelFormats) -> None:
    add = commands.add_parser(
        "export", help="write the votes of a labelling as a label file", allow_abbrev=False
    )
    add.add_argument("votes", metavar="FILE", help="of label --votes; it may be in use")
    add.add_argument("--to", default="attune", metavar="DIALECT", help="see docs/labels.md")
    add.add_argument("--out", required=True, metavar="PATH", help="the file to write")
    add.add_argument(
        "--aggregate",
        metavar="RULE",
        help="mean or majority: adds a label to each clip, which most dialects need",
    )
    add.add_argument("--axis", help="quality or relevance of --task mos (default: both)")
    add.add_argument(
        "--copy-audio",
        metavar="DIR",
        help="copy the clips there under BATON's names, <id>_<caption>_<sample>, which the dialects"
        " pages and scores need",
    )
    _add_min_passed(add)
    add.set_defaults(run=lambda options: _export(options, formats))


def _add_min_passed(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--min-passed",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out raters who recognised a smaller share of the clear negatives, 0 to 1",
    )


def _label(options: argparse.Namespace) -> None:
    from zoo.listening.items import prompts_of, read_items, unrelated
    from zoo.listening.label_app import serve_study, starlette
    from zoo.listening.study import open_study
    from zoo.listening.study_trials import StudySettings

    starlette()
    settings = StudySettings(
        task=options.task,
        per_rater=options.per_rater,
        repeats=options.repeats,
        negatives=options.negatives,
        headphones=options.headphones,
        questionnaire=not options.no_questionnaire,
        equal_level=not options.own_level,
    )
    is_pairwise = settings.task == "pairwise"
    if options.pairs_per_prompt is not None and not is_pairwise:
        raise UserError("--pairs-per-prompt is for --task pairwise")
    found = read_items(options.folders, is_pairwise, options.names, options.pairs_per_prompt)
    for reason, count in found.left_out.items():
        print(f"left out {count} {reason}")
    study = open_study(options.votes, found.items, settings)
    what = "pairs" if is_pairwise else "clips"
    print(
        f"{settings.task}: {len(study.items)} {what} of {prompts_of(study.items)} prompts; votes go"
        f" to {options.votes}; stop with Ctrl-C"
    )
    has_negatives = settings.task == "quality" or any(
        unrelated(study.items, i) for i in range(len(study.items))
    )
    if settings.negatives and not has_negatives:
        print("no clear negatives are asked: every two prompts share a word")
    serve_study(study, options.host, options.port)


def _results(options: argparse.Namespace, formats: LabelFormats) -> None:
    from zoo.listening.results_page import result_lines, write_results
    from zoo.listening.vote_results import mean_opinions, read_study, records_of
    from zoo.listening.vote_store import open_store

    out = None if options.out is None else Path(options.out)
    if out is not None:
        if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
            raise UserError(f"--out {out}: expected a file that ends in .html")
        if out.exists() and not options.overwrite:
            raise UserError(f"{out} exists; give another --out, or --overwrite to replace it")
        check_writable(out)
        clear_after_killed(out.parent, glob.escape(out.name))
    result = read_study(open_store(options.votes))
    records = records_of(result, options.min_passed)
    alphas = {}
    for axis in sorted({record.task for record in records}):
        alphas[axis] = formats.agreement([one for one in records if one.task == axis])
    rows = mean_opinions(records)
    print("\n".join(result_lines(result, rows, alphas, options.min_passed)))
    if out is not None:
        write_results(out, result, rows, alphas, options.min_passed)
        print(out)


def _export(options: argparse.Namespace, formats: LabelFormats) -> None:
    from zoo.listening.items import copied_clips
    from zoo.listening.vote_results import read_study, records_of
    from zoo.listening.vote_store import open_store

    result = read_study(open_store(options.votes))
    records = records_of(result, options.min_passed)
    axes = sorted({record.task for record in records})
    if options.axis is not None:
        if options.axis not in axes:
            raise UserError(f"--axis {options.axis}: the votes are about {', '.join(axes) or '-'}")
        records = tuple(one for one in records if one.task == options.axis)
    if not records:
        raise UserError(f"{options.votes}: there are no votes to export yet")
    if options.aggregate is not None:
        records = tuple(formats.aggregate(records, options.aggregate))
    paths = {clip.name: clip.path for item in result.items for clip in item.clips}
    if options.copy_audio is not None:
        names = copied_clips(result.items, options.copy_audio)
        paths = {names[name]: Path(options.copy_audio) / names[name] for name in paths}
        records = tuple(
            replace(one, audio=names[one.audio], other=names.get(one.other, "")) for one in records
        )
    lost = formats.write(records, Path(options.out), options.to, paths.__getitem__)
    votes = sum(len(record.votes) for record in records)
    print(f"wrote {votes} votes on {len(records)} records as {options.to} to {options.out}")
    for field, count in lost.items():
        print(f"{options.to} has no place for all of it: {field} of {count} records was not kept")
    roots = sorted({_root(name, path) for name, path in paths.items()})
    print(f"the clips are below {', '.join(roots)}")


def _root(name: str, path: Path) -> str:
    """The folder that the name of a clip starts from."""
    return str(path).removesuffix(name).rstrip("/") or "/"
