"""Generators. ``BACKBONES`` is the whole registry: architecture key -> ``module:Class``, loaded when it is used."""

BACKBONES: dict[str, str] = {
    "tiny_audio": "zoo.backbones.tiny:TinyAudio",
    "audioldm2": "zoo.backbones.audioldm2:AudioLDM2",
    "tango": "zoo.backbones.tango:Tango",
}
