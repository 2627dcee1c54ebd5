"""The command line of ``tools/piano_demo.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/piano_demo.py",
        description="Renders a synthetic piano data set in EMOPIA's layout.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--to", required=True, metavar="DIR", help="a folder that does not exist or is empty")
    add(
        "--songs",
        type=int,
        default=240,
        help="at least 12; 60 %% train, 15 %% val, 25 %% test (default: %(default)s)",
    )
    add(
        "--segments",
        type=int,
        default=3,
        help="clips per song, variations of one theme (default: %(default)s)",
    )
    add("--seconds", type=float, default=6.0, help="length of a clip (default: %(default)s)")
    add(
        "--ambiguity",
        type=float,
        default=0.25,
        help="0 to 0.75, probability of a trait from another mood (default: %(default)s)",
    )
    add(
        "--renderer",
        default="soundfont",
        help="soundfont, or additive, which needs no SoundFont (default: %(default)s)",
    )
    add(
        "--format",
        default="flac",
        help="of the clips: flac, wav, or mp3 like EMOPIA's (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="another seed gives another set (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the command. Raises ``UserError`` and ``OSError`` for mistakes in its arguments."""
    options = parser().parse_args(argv)
    # imports torch, which would slow down --help
    from datamodules.music.piano_demo import write_piano_demo

    try:
        clips = write_piano_demo(
            options.to,
            songs=options.songs,
            segments=options.segments,
            seconds=options.seconds,
            ambiguity=options.ambiguity,
            renderer=options.renderer,
            audio_format=options.format,
            seed=options.seed,
        )
    except ImportError as error:  # the message says how to install the synthesiser
        raise UserError(str(error)) from error
    shares = ", ".join(f"{count} {split}" for split, count in clips.items())
    count = sum(clips.values())
    print(f"wrote {count} clips ({shares}) of synthetic piano to {options.to}; train on them:")
    folders = f"data.audio_dir={Path(options.to) / 'audio'} data.split_dir={options.to}"
    print(f"python tools/fit.py --config configs/emotion/piano_demo.yaml {folders}")
