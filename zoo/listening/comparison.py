"""What fine-tuning changed, to be heard: a page of prompt, original and fine-tuned sound, with a
scorer's number for each.
"""

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
from zoo.types import Reward

_BATCH = 8  # pairs that are scored at a time
Progress = Callable[[int, int], None]  # (done, total)


def scored(
    pairs: Sequence[Pair], reward: Reward, called: str = "score", progress: Progress | None = None
) -> tuple[str, list[float], list[float]]:
    """(name of the total score, the base's scores, the fine-tuned ones' scores): the reward's own
    ``name`` where it has one, as a CLAP, else what it is ``called``.

    Raises ``UserError`` and ``OSError`` for audio that cannot be read and prompts that the reward
    cannot judge.
    """
    name, base, tuned = str(getattr(reward, "name", called)), [], []
    first = next(reward.parameters(), None) if isinstance(reward, nn.Module) else None
    device = "cpu" if first is None else first.device
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        samples = [pair.base for pair in some] + [pair.tuned for pair in some]
        waves = [read_audio(sample.path) for sample in samples]
        waves = [replace(wave, samples_CN=wave.samples_CN.to(device)) for wave in waves]
        output = score(reward, waves, [sample.prompt for sample in samples])
        values = output.score_B.tolist()
        base += values[: len(some)]
        tuned += values[len(some) :]
        if progress is not None:
            progress(len(base), len(pairs))
    return name, base, tuned


def summary_lines(name: str, found: Difference) -> list[str]:
    """The comparison in words, for the page and the terminal."""
    interval = "no interval from one prompt"
    if found.interval is not None:
        interval = f"95 % interval {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
    return [
        (
            f"{name}, mean over n = {found.prompts} prompts ({found.clips} pairs of clips):"
            f" original {found.base:.3f}, fine-tuned {found.tuned:.3f}, change {found.change:+.3f}"
            f" ({interval})"
        ),
        f"{found.higher} prompts went up, {found.lower} down",
    ]


def comparison_page(
    pairing: Pairing, name: str, base: Sequence[float], tuned: Sequence[float], title: str
) -> str:
    """The whole HTML document; sounds are inside.

    Raises ``UserError`` and ``OSError`` for audio that cannot be read.
    """
    found = paired_difference([pair.prompt.id for pair in pairing.pairs], base, tuned)
    lines = summary_lines(name, found)
    if pairing.alone:
        lines.append(
            f"{pairing.alone} samples of one folder have no partner in the other and are left out"
        )
    rows = [
        _row(pair, before, after)
        for pair, before, after in zip(pairing.pairs, base, tuned, strict=True)
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
    if pair.base.seed is not None:
        text += f'<br><span class="note">seed {pair.base.seed}</span>'
    cells = "".join(
        f"<td>{player(sample.path)}{value:.3f}</td>"
        for sample, value in ((pair.base, before), (pair.tuned, after))
    )
    return f'<tr><td>{text}</td>{cells}<td class="number">{after - before:+.3f}</td></tr>'


def write_comparison(
    path: str | Path, pairing: Pairing, name: str, base: Sequence[float], tuned: Sequence[float]
) -> Path:
    """``comparison_page`` in a file.

    Raises as it does, and ``OSError`` when it cannot be written.
    """
    path = Path(path)
    content = comparison_page(pairing, name, base, tuned, "Original and fine-tuned")
    with written_beside(path) as part:
        part.write_text(content, encoding="utf-8")
    return path
