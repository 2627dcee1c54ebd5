"""Parts of self-contained HTML pages that open offline, without scripts or links elsewhere."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.audio_files import read_audio
from zoo.types import Waveform

if TYPE_CHECKING:
    import numpy as np

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; color: #1c2733 }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #d8dee5; padding-bottom: .25rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .5rem; border-bottom: 1px solid #d8dee5; vertical-align: top }
th { color: #5b6b7b; font-weight: 600 }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.up { color: #176b37 } .down { color: #a3271c }
.part td:first-child { padding-left: 2rem }
.narrow { width: auto; min-width: 50% }
.wide { overflow-x: auto }
audio { width: 18rem; max-width: 100%; height: 2.5rem; display: block; margin: .25rem 0 }
img { max-width: 100% }
img.spectrogram { width: 20rem; display: block }
pre { background: #f4f6f8; padding: 1rem; overflow: auto; font-size: 13px }
details > summary { cursor: pointer; padding: .5rem 0 }
.note, .interval { color: #5b6b7b }
.interval { white-space: nowrap; font-variant-numeric: tabular-nums }
"""
LOUDEST_DB, QUIETEST_DB = -15, -85  # brightest and darkest level of a spectrogram, of full scale
_COLUMNS, _BANDS = 400, 120  # of a spectrogram: frames at most, frequencies


def data_uri(kind: str, data: bytes) -> str:
    """The bytes as a data URI; ``kind`` is the media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(path: Path, description: str) -> str:
    """An ``<img>`` element with the PNG file in it; ``description`` is its alternative text.

    Raises ``OSError``.
    """
    return (
        f'<img alt="{html.escape(description)}" src="{data_uri("image/png", path.read_bytes())}">'
    )


def player(path: Path) -> str:
    """An ``<audio>`` element with the file in it as FLAC, which every browser plays."""
    return _player(read_audio(path))


def clip(path: Path) -> str:
    """A spectrogram of the file and, below it, its player."""
    wave = read_audio(path)
    return _spectrogram(wave) + _player(wave)


def _player(wave: Waveform) -> str:
    import soundfile

    samples_NC = (wave.samples_CN.T * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
    packed = io.BytesIO()
    soundfile.write(packed, samples_NC, wave.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return (
        f'<audio controls preload="none" src="{data_uri("audio/flac", packed.getvalue())}"></audio>'
    )


def log_spectrogram(wave: Waveform) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Level over time and frequency of the downmix.

    Returns: edges of the frames in seconds (F + 1), edges of the bands in Hz on a log axis (B + 1),
    and the level in dB of full scale (B, F): a sine of amplitude 1 is at -3 dB.
    """
    import numpy as np
    from scipy.signal import spectrogram

    mono_N = wave.samples_CN.mean(0).numpy()
    window = min(len(mono_N), 2 ** round(np.log2(max(2, 0.064 * wave.sample_rate_hz))))
    hz, _, power = spectrogram(
        mono_N,
        wave.sample_rate_hz,
        nperseg=window,
        noverlap=window - max(1, window // 4),
        scaling="spectrum",
    )
    highest_hz = wave.sample_rate_hz / 2
    edges_hz = np.geomspace(min(50, highest_hz / 10), highest_hz, _BANDS + 1)
    # the loudest of the lines of each band; where lines are wider than bands, the next one
    first = np.searchsorted(hz, edges_hz[:-1])
    last = np.maximum(np.searchsorted(hz, edges_hz[1:]), first + 1)
    power = np.stack([power[i:j].max(0) for i, j in zip(first, last, strict=True)])
    frames = power.shape[1]
    starts = np.arange(0, frames, -(-frames // _COLUMNS))
    edges_s = np.append(starts, frames) * (len(mono_N) / wave.sample_rate_hz / frames)
    power = np.maximum.reduceat(power, starts, axis=1)
    return edges_s, edges_hz, 10 * np.log10(power + 1e-12)


def _spectrogram(wave: Waveform) -> str:
    """An ``<img>`` element with the spectrogram. All have the same scale of levels, so that two can
    be compared. It is a JPEG, since a PNG is five times as large.
    """
    from matplotlib.figure import Figure

    edges_s, edges_hz, level_db = log_spectrogram(wave)
    figure = Figure(figsize=(3.6, 1.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.pcolormesh(edges_s, edges_hz, level_db, vmin=QUIETEST_DB, vmax=LOUDEST_DB, cmap="magma")
    axis.set_yscale("log")
    lowest_hz, highest_hz = edges_hz[0], edges_hz[-1]
    ticks_hz = [hz for hz in (100, 300, 1_000, 3_000, 10_000) if lowest_hz < hz < highest_hz]
    axis.set_yticks(ticks_hz, [f"{hz / 1000:g}" for hz in ticks_hz])
    axis.minorticks_off()
    axis.set_xlabel("seconds", fontsize=7, labelpad=1)
    axis.set_ylabel("kHz", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7, length=2, pad=1)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="jpeg", pil_kwargs={"quality": 85})
    source = data_uri("image/jpeg", drawn.getvalue())
    return f'<img class="spectrogram" alt="spectrogram" src="{source}">'


def page(title: str, body: str) -> str:
    """The whole document; ``title`` is escaped, ``body`` is HTML already."""
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
