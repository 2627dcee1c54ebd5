"""The smallest model of every backbone of the table."""

import importlib

import toy_audioldm
import toy_audioldm2
import toy_stable_audio
import toy_tango
import toy_tangoflux

from zoo.backbones import BACKBONES

# the smallest arguments of each backbone that need no weights of others; one that is small by
# default needs no row
ARGUMENTS = {
    "tiny_audio": {
        "width": 32,
        "depth": 1,
        "heads": 2,
        "text_width": 16,
        "text_depth": 1,
        "codec_width": 16,
        "codec_encoder_depth": 1,
        "codec_decoder_depth": 1,
    },
    "tango": toy_tango.SMALL,
}
ARGUMENTS["audioldm"] = toy_audioldm.arguments()
ARGUMENTS["audioldm2"] = toy_audioldm2.arguments()
ARGUMENTS["stable_audio"] = toy_stable_audio.arguments() | {
    "frame_window": "heard"
}  # None denoises its full length always
ARGUMENTS["tangoflux"] = toy_tangoflux.ARGUMENTS | {"frame_window": "heard"}


def build(key):
    module, _, name = BACKBONES[key].partition(":")
    return getattr(importlib.import_module(module), name)(**ARGUMENTS.get(key, {}))
