"""A page to compare by ear: prompt, original and fine-tuned sound, and their scores."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from zoo.audio_files import read_audio
from zoo.files import written_beside
from zoo.generation import score
from zoo.html_pages import page, player
from zoo.listening.pairs import Difference, Pair, Pairing, paired_difference
from zoo.types import Scorer

_BATCH = 8  # pairs that are scored at a time
Progress = Callable[[int, int], None]  # (done, total)


def scored(
    pairs: Sequence[Pair], scorer: Scorer, called: str = "score", progress: Progress | None = None
) -> tuple[str, list[float], list[float]]:
    """Scores both systems.

    Returns the name of the score (the scorer's own ``name`` if it has one, else ``called``), and
    the scores of the first and of the second system, in the order of ``pairs``. Raises
    ``UserError`` and ``OSError`` for unreadable audio and prompts that the scorer cannot score.
    """
    name = str(getattr(scorer, "name", called))
    first: list[float] = []
    second: list[float] = []
    weight = next(scorer.parameters(), None) if isinstance(scorer, nn.Module) else None
    device = "cpu" if weight is None else weight.device
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        samples = [pair.first for pair in some] + [pair.second for pair in some]
        waves = [read_audio(sample.path) for sample in samples]
        waves = [replace(wave, samples_CN=wave.samples_CN.to(device)) for wave in waves]
        output = score(scorer, waves, [sample.prompt for sample in samples])
        values = output.score_B.tolist()
        first += values[: len(some)]
        second += values[len(some) :]
        if progress is not None:
            progress(len(first), len(pairs))
    return name, first, second


def summary_lines(name: str, found: Difference) -> list[str]:
    """The comparison in words, for the page and the terminal."""
    interval = "no interval from one prompt"
    if found.interval is not None:
        interval = f"95 % interval {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
    return [
        (
            f"{name}, mean over n = {found.prompts} prompts ({found.clips} pairs of clips):"
            f" original {found.first:.3f}, fine-tuned {found.second:.3f}, change"
            f" {found.change:+.3f} ({interval})"
        ),
        f"{found.higher} prompts went up, {found.lower} down",
    ]


def comparison_page(
    pairing: Pairing, name: str, first: Sequence[float], second: Sequence[float], title: str
) -> str:
    """The complete HTML document, with the sounds in it.

    Args:
        pairing: the clips of both models for the same prompts.
        name: of the score.
        first: scores of the first model's clips.
        second: scores of the second model's clips.
        title: heading of the page.

    Raises ``UserError`` and ``OSError`` for audio that cannot be read.
    """
    found = paired_difference([pair.prompt.id for pair in pairing.pairs], first, second)
    lines = summary_lines(name, found)
    if pairing.alone:
        lines.append(
            f"{pairing.alone} samples of one folder have no partner in the other and are left out"
        )
    rows = [
        _row(pair, before, after)
        for pair, before, after in zip(pairing.pairs, first, second, strict=True)
    ]
    head = (
        "<tr><th>prompt</th><th>original</th><th>fine-tuned</th><th class=number>change of"
        f" {html.escape(name)}</th></tr>"
    )
    body = f"""<ul>{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>
<p class="note">A score by the reward that the model was trained on says that training worked, not
that it sounds better: compare with a scorer that training never saw, and with
listeners who do not know which is which.</p>
<table>{head}{"".join(rows)}</table>"""
    return page(title, body)


def _row(pair: Pair, before: float, after: float) -> str:
    text = html.escape(pair.prompt.text)
    if pair.prompt.negative:
        text += f'<br><span class="note">not: {html.escape(pair.prompt.negative)}</span>'
    if pair.first.seed is not None:
        text += f'<br><span class="note">seed {pair.first.seed}</span>'
    cells = "".join(
        f"<td>{player(sample.path)}{value:.3f}</td>"
        for sample, value in ((pair.first, before), (pair.second, after))
    )
    return f'<tr><td>{text}</td>{cells}<td class="number">{after - before:+.3f}</td></tr>'


def write_comparison(
    path: str | Path, pairing: Pairing, name: str, first: Sequence[float], second: Sequence[float]
) -> Path:
    """Writes ``comparison_page`` to a file.

    Raises like it, and ``OSError`` when the file cannot be written.
    """
    path = Path(path)
    content = comparison_page(pairing, name, first, second, "Original and fine-tuned")
    with written_beside(path) as part:
        part.write_text(content, encoding="utf-8")
    return path
