"""Released checkpoints in their authors' layouts, brought into ours: strict, every tensor accounted
for, no foreign framework.
"""

# (architecture, layout) of a zoo entry -> "module:function" that opens its pulled folder:
# function(name, folder) -> the model
IMPORTERS = {
    ("audioldm", "diffusers"): "zoo.importers.audioldm:pulled_audioldm",
    ("audioldm2", "diffusers"): "zoo.importers.audioldm2:pulled_audioldm2",
    ("stable_audio", "diffusers"): "zoo.importers.stable_audio:pulled_stable_audio",
    ("tango", "original"): "zoo.importers.tango:pulled_tango",
    ("tangoflux", "original"): "zoo.importers.tangoflux:pulled_tangoflux",
    ("clap", "original"): "zoo.importers.pretrained_clap:pulled_clap",
    ("clap", "transformers"): "zoo.importers.pretrained_clap:pulled_clap",
}
# _class_name in a folder's model_index.json -> its architecture here, in the layout "diffusers"
PIPELINES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableAudioPipeline": "stable_audio",
}
