"""Pieces of self-contained HTML pages that open offline: everything is inside the file, no script,
no link to elsewhere.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from zoo.audio_files import read_audio

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .5rem; border-bottom: 1px solid #d8dee5 }
.number { text-align: right; font-variant-numeric: tabular-nums } audio { width: 16rem; display: block }
img { max-width: 100% } pre { background: #f4f6f8; padding: 1rem; overflow: auto; font-size: 13px }
.note, .interval { color: #5b6b7b }
.interval { white-space: nowrap; font-variant-numeric: tabular-nums }
"""


def data_uri(kind: str, data: bytes) -> str:
    """The bytes as an address that needs no other file; ``kind`` is the media type, such as
    image/png.
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(path: Path, description: str) -> str:
    """An ``<img>`` element with the PNG file in it; ``description`` is read out where it cannot be
    seen. Raises ``OSError``.
    """
    return (
        f'<img alt="{html.escape(description)}" src="{data_uri("image/png", path.read_bytes())}">'
    )


def player(path: Path) -> str:
    """An ``<audio>`` element with the file in it (as FLAC: lossless and half the size; every
    browser plays it).
    """
    import soundfile

    wave = read_audio(path)
    samples_NC = (wave.samples_CN.T * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
    packed = io.BytesIO()
    soundfile.write(packed, samples_NC, wave.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return (
        f'<audio controls preload="none" src="{data_uri("audio/flac", packed.getvalue())}"></audio>'
    )


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
