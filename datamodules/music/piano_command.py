"""The command line of ``tools/piano_demo.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/piano_demo.py",
        description="A rendered piano set in EMOPIA's layout.",
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
        help="0 to 0.75, chance of a trait from another mood (default: %(default)s)",
    )
    add(
        "--renderer",
        default="soundfont",
        help="soundfont, or additive, which needs no SoundFont (default: %(default)s)",
    )
    add(
        "--format",
        default="flac",
        help="of the clips: flac, wav or mp3, as EMOPIA has it (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="another seed gives another set (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Raises ``UserError`` and ``OSError`` for mistakes in what was given."""
    o = parser().parse_args(argv)
    from datamodules.music.piano_demo import (
        write_piano_demo,  # needs torch, which would slow --help down
    )

    try:
        clips = write_piano_demo(
            o.to, o.songs, o.segments, o.seconds, o.ambiguity, o.renderer, o.format, o.seed
        )
    except ImportError as error:  # no synthesiser; the message says what installs it
        raise UserError(str(error)) from error
    shares = ", ".join(f"{count} {split}" for split, count in clips.items())
    print(
        f"wrote {sum(clips.values())} clips ({shares}) of synthetic piano to {o.to}; train on them:"
    )
    folders = f"data.audio_dir={Path(o.to) / 'audio'} data.split_dir={o.to}"
    print(f"python tools/fit.py --config configs/emotion/piano_demo.yaml {folders}")
