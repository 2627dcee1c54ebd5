"""Imports released checkpoints from their authors' layouts: strict, without their frameworks."""

# (architecture, layout) -> "module:function" that opens a folder in that layout: the function takes
# what zoo.hub.resolve found, and the model's options as keywords
IMPORTERS = {
    ("audioldm", "diffusers"): "zoo.importers.audioldm:open_audioldm",
    ("audioldm2", "diffusers"): "zoo.importers.audioldm2:open_audioldm2",
    ("stable_audio", "diffusers"): "zoo.importers.stable_audio:open_stable_audio",
    ("tango", "original"): "zoo.importers.tango:open_tango",
    ("tangoflux", "original"): "zoo.importers.tangoflux:open_tangoflux",
    ("clap", "original"): "zoo.importers.pretrained_clap:open_clap_reward",
    ("clap", "transformers"): "zoo.importers.pretrained_clap:open_clap_reward",
}
