"""Generators.

``BACKBONES`` is the whole registry: architecture key -> ``module:Class``, loaded when it is used.
"""

BACKBONES: dict[str, str] = {
    "tiny_audio": "zoo.backbones.tiny:TinyAudio",
    "audioldm": "zoo.backbones.audioldm:AudioLDM",
    "audioldm2": "zoo.backbones.audioldm2:AudioLDM2",
    "stable_audio": "zoo.backbones.stable_audio:StableAudio",
    "tango": "zoo.backbones.tango:Tango",
    "tangoflux": "zoo.backbones.tangoflux:TangoFlux",
}
