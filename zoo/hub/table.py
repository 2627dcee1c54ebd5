"""``ENTRIES``: every model that has a name. A literal table: other names are unknown.

A commit, hash, size or licence that its publisher does not state is None or "unknown", never a
guess; the first pull pins commit and hashes in a lock file (``zoo.hub.lock``).
"""

from __future__ import annotations

from zoo.hub.entry import UNKNOWN, ZooEntry

_TANGO_NOTE = "not in this repository: google/flan-t5-large and the U-Net's configuration"
_BEWO_NOTE = (
    "its authors name no licence; the terms of stabilityai/stable-audio-open-1.0, its base, apply"
)
_CLAP = "lukewys/laion_clap"
_EMOPIA_NOTE = (
    "not on the Hub: the authors' Google Drive link is in github.com/SeungHeonDoh/EMOPIA_cls"
    " (best_weight/wav/{0}/best.ckpt); the data set is cc-by-nc-sa-4.0, no licence of the weights"
    " is known"
)
_EMOPIA_IMPORTER = "zoo.importers.emopia.load_emopia"
# Diffusers folders that hold every weight twice: the safetensors files are taken.
_SAFE_ONLY = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.onnx", "*.msgpack", "*.h5")

ENTRIES: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        # The embedded family: package data. `python tools/zoo.py verify NAME` prints the hashes.
        ZooEntry(
            "embedded/music",
            "backbone",
            "tiny_audio",
            "small text-to-music diffusion model, stereo, 9.4 M parameters",
            licence="apache-2.0",
            sample_rate_hz=16_000,
            folder="embedded/music",
            size_bytes=18_857_971,
            sha256={
                "config.json": "fd92b3b3637c5fdaa70ec7a5dbc919914156579874f801cf5faf6edc20579146",
                "model.safetensors": (
                    "1cc26cc0b5fafa2ab4ea379a28487af969016022562c247ec6cff2d4ae1d208f"
                ),
            },
            card="hub_cards/embedded_music.md",
        ),
        ZooEntry(
            "embedded/mood",
            "reward",
            "emotion",
            "mood of solo music: happy, angry, sad, tender",
            licence="apache-2.0",
            sample_rate_hz=16_000,
            folder="embedded/mood",
            size_bytes=747_681,
            sha256={
                "config.json": "5f75e760699595dab70a2fb4e5a03c3e9a24be79ab8d0eace8d89d090805299e",
                "model.safetensors": (
                    "69b2266724e3698c21fbf61dc0e3b3b951a6c73374ec682adbff7983d87ac4fc"
                ),
            },
            card="hub_cards/embedded_mood.md",
            metrics={"held-out clip vote": 1.0},
        ),
        ZooEntry(
            "embedded/sounds",
            "backbone",
            "tiny_audio",
            "small text-to-sound model of 32 classes, stereo, 7.4 M parameters",
            licence="apache-2.0",
            sample_rate_hz=16_000,
            folder="embedded/sounds",
            size_bytes=14_890_128,
            sha256={
                "config.json": "cdf01fa050630cab6a4c5fa0dec067cbc0a141842b4fa756095ba4227642558a",
                "model.safetensors": (
                    "46a8ae947dc04cc2dfb10a3e23dc7a69e1d7f4f4914d2123562ed4774bec1737"
                ),
            },
            card="hub_cards/embedded_sounds.md",
        ),
        ZooEntry(
            "embedded/clap",
            "reward",
            "clap",
            "small CLAP of recorded sounds: does a clip fit its caption, order included",
            licence="apache-2.0",
            sample_rate_hz=16_000,
            folder="embedded/clap",
            size_bytes=1_764_468,
            sha256={
                "config.json": "5c21f174e3c50f6efe908c2e454c66e5b702e510061565184d029f02505bdcbf",
                "model.safetensors": (
                    "b9fe975b7f78bf9feba9577df675b515d72003998382ba7513f03f3a2646459e"
                ),
            },
            card="hub_cards/embedded_clap.md",
            metrics={"caption to clip R@1 of 384": 0.878, "order accuracy": 0.942},
        ),
        # AudioLDM (arXiv 2301.12503) and AudioLDM 2 (2308.05734), diffusers folders.
        ZooEntry(
            "audioldm-s-full-v2",
            "backbone",
            "audioldm",
            "AudioLDM small, second version: general audio, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="cvssp/audioldm-s-full-v2",
            skip=_SAFE_ONLY,
            layout="diffusers",
        ),
        ZooEntry(
            "audioldm-m-full",
            "backbone",
            "audioldm",
            "AudioLDM medium: general audio, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="cvssp/audioldm-m-full",
            skip=_SAFE_ONLY,
            layout="diffusers",
        ),
        ZooEntry(
            "audioldm2",
            "backbone",
            "audioldm2",
            "AudioLDM 2 base: general audio, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="cvssp/audioldm2",
            revision="c8e7e189d324425c05c4c2f81214041ef4107983",
            skip=_SAFE_ONLY,
            layout="diffusers",
        ),
        ZooEntry(
            "audioldm2-large",
            "backbone",
            "audioldm2",
            "AudioLDM 2 large: general audio, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="cvssp/audioldm2-large",
            revision="4b0b875a9e0c5305dfc917da808584e50e1c7ed4",
            skip=_SAFE_ONLY,
            layout="diffusers",
        ),
        ZooEntry(
            "audioldm2-music",
            "backbone",
            "audioldm2",
            "AudioLDM 2 trained on music, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="cvssp/audioldm2-music",
            revision="0019cb0bd4d314accff72aee1c3abd6f22929ba5",
            skip=_SAFE_ONLY,
            layout="diffusers",
        ),
        # Tango (arXiv 2304.13731) and Tango 2 (2404.09956), their authors' folders.
        ZooEntry(
            "tango-full",
            "backbone",
            "tango",
            "Tango trained on TangoPromptBank, mono, 10 s",
            licence=UNKNOWN,
            sample_rate_hz=16_000,
            repo_id="declare-lab/tango-full",
            layout="original",
            note=(
                "the page of this repository showed no licence, its sister models are"
                f" cc-by-nc-sa-4.0; {_TANGO_NOTE}"
            ),
        ),
        ZooEntry(
            "tango-full-ft-audiocaps",
            "backbone",
            "tango",
            "Tango full, fine-tuned on AudioCaps, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="declare-lab/tango-full-ft-audiocaps",
            layout="original",
            base="tango-full",
            note=_TANGO_NOTE,
        ),
        ZooEntry(
            "tango2",
            "backbone",
            "tango",
            "Tango after DPO on Audio-alpaca, mono, 10 s",
            licence="cc-by-nc-sa-4.0",
            sample_rate_hz=16_000,
            repo_id="declare-lab/tango2",
            layout="original",
            base="tango-full-ft-audiocaps",
            note=_TANGO_NOTE,
        ),
        # Stable Audio Open (arXiv 2407.14358) and the spatial models trained from it, BEWO
        # (2410.10676).
        ZooEntry(
            "stable-audio-open-1.0",
            "backbone",
            "stable_audio",
            "Stable Audio Open 1.0: effects and music, stereo, up to 47 s",
            licence="stable-audio-community",
            sample_rate_hz=44_100,
            repo_id="stabilityai/stable-audio-open-1.0",
            gated=True,
            skip=(*_SAFE_ONLY, "model.safetensors", "*.csv"),
            layout="diffusers",
            note=(
                "Stability AI Community License: agree to it on the model's page, then pull with"
                " your token"
            ),
        ),
        ZooEntry(
            "bewo-nl",
            "backbone",
            "spatial_stable_audio",
            "BEWO: stereo from captions that name directions in plain words",
            licence=UNKNOWN,
            sample_rate_hz=44_100,
            repo_id="spw2000/bewo-1m",
            files=("BEWO_nl.ckpt",),
            layout="original",
            base="stable-audio-open-1.0",
            note=_BEWO_NOTE,
        ),
        ZooEntry(
            "bewo-attri",
            "backbone",
            "spatial_stable_audio",
            "BEWO: stereo from captions and azimuth attributes",
            licence=UNKNOWN,
            sample_rate_hz=44_100,
            repo_id="spw2000/bewo-1m",
            files=("BEWO_attri.ckpt",),
            layout="original",
            base="stable-audio-open-1.0",
            note=_BEWO_NOTE,
        ),
        ZooEntry(
            "bewo-mix",
            "backbone",
            "spatial_stable_audio",
            "BEWO: trained on both kinds of captions, and on mixtures",
            licence=UNKNOWN,
            sample_rate_hz=44_100,
            repo_id="spw2000/bewo-1m",
            files=("BEWO_mix.ckpt",),
            layout="original",
            base="stable-audio-open-1.0",
            note=_BEWO_NOTE,
        ),
        ZooEntry(
            "tangoflux",
            "backbone",
            "tangoflux",
            "TangoFlux (arXiv 2412.21037): rectified flow, stereo, up to 30 s",
            licence="tangoflux-non-commercial",
            sample_rate_hz=44_100,
            repo_id="declare-lab/TangoFlux",
            layout="original",
            note=(
                "Stability AI Community License for its codec, and academic, non-commercial use"
                " only (WavCaps); its tokenizer, that of google/flan-t5-large, is not in this"
                " repository"
            ),
        ),
        # LAION-CLAP (arXiv 2211.06687): checkpoints in their authors' layout (pickled), then their
        # converted copies for transformers.
        ZooEntry(
            "clap-630k-best",
            "reward",
            "clap",
            "LAION-CLAP, HTSAT-tiny: LAION-Audio-630k",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("630k-best.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-630k-audioset-best",
            "reward",
            "clap",
            "LAION-CLAP, HTSAT-tiny: 630k and AudioSet",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("630k-audioset-best.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-630k-fusion-best",
            "reward",
            "clap_fusion",
            "LAION-CLAP, HTSAT-tiny with fusion: 630k",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("630k-fusion-best.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-630k-audioset-fusion-best",
            "reward",
            "clap_fusion",
            "LAION-CLAP, HTSAT-tiny with fusion: 630k and AudioSet",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("630k-audioset-fusion-best.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-music-audioset",
            "reward",
            "clap",
            "LAION-CLAP, HTSAT-base: music and AudioSet",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("music_audioset_epoch_15_esc_90.14.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-music-speech",
            "reward",
            "clap",
            "LAION-CLAP, HTSAT-base: music and speech",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("music_speech_epoch_15_esc_89.25.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-music-speech-audioset",
            "reward",
            "clap",
            "LAION-CLAP, HTSAT-base: music, speech and AudioSet",
            licence="cc0-1.0",
            sample_rate_hz=48_000,
            repo_id=_CLAP,
            files=("music_speech_audioset_epoch_15_esc_89.98.pt",),
            layout="original",
        ),
        ZooEntry(
            "clap-htsat-unfused",
            "reward",
            "clap",
            "the same weights for transformers as clap-630k-audioset-best",
            licence="apache-2.0",
            sample_rate_hz=48_000,
            repo_id="laion/clap-htsat-unfused",
            revision="8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a",
            layout="transformers",
        ),
        ZooEntry(
            "clap-htsat-fused",
            "reward",
            "clap_fusion",
            "the same weights for transformers as clap-630k-audioset-fusion-best",
            licence="apache-2.0",
            sample_rate_hz=48_000,
            repo_id="laion/clap-htsat-fused",
            layout="transformers",
        ),
        ZooEntry(
            "larger-clap-general",
            "reward",
            "clap",
            "the same weights for transformers as clap-music-speech-audioset",
            licence="apache-2.0",
            sample_rate_hz=48_000,
            repo_id="laion/larger_clap_general",
            layout="transformers",
            note=(
                "its first conversion was wrong (huggingface/transformers#27153): take no old"
                " revision"
            ),
        ),
        ZooEntry(
            "larger-clap-music",
            "reward",
            "clap",
            "meant as the the same weights for transformers as clap-music-audioset",
            licence="apache-2.0",
            sample_rate_hz=48_000,
            repo_id="laion/larger_clap_music",
            layout="transformers",
            note=(
                "its text tower is collapsed (unrelated captions have a cosine of .9993,"
                " embeddings-benchmark/mteb#5069), so it is refused at load: take"
                " clap-music-audioset, the original file, which is converted here"
            ),
        ),
        ZooEntry(
            "larger-clap-music-and-speech",
            "reward",
            "clap",
            "the same weights for transformers as clap-music-speech",
            licence="apache-2.0",
            sample_rate_hz=48_000,
            repo_id="laion/larger_clap_music_and_speech",
            layout="transformers",
            note=(
                "its first conversion was wrong (huggingface/transformers#27153): take no old"
                " revision"
            ),
        ),
        # EMOPIA's audio classifiers (arXiv 2108.01374), short-chunk ResNet.
        ZooEntry(
            "emopia-ar-va",
            "classifier",
            "emotion",
            "mood of piano music in four quadrants (EMOPIA)",
            licence=UNKNOWN,
            sample_rate_hz=22_050,
            layout="original",
            note=_EMOPIA_NOTE.format("ar_va"),
            importer=_EMOPIA_IMPORTER,
            metrics={"test accuracy, by its authors": 0.677},
        ),
        ZooEntry(
            "emopia-arousal",
            "classifier",
            "emotion",
            "arousal of piano music, high or low (EMOPIA)",
            licence=UNKNOWN,
            sample_rate_hz=22_050,
            layout="original",
            note=_EMOPIA_NOTE.format("arousal"),
            importer=_EMOPIA_IMPORTER,
            metrics={"test accuracy, by its authors": 0.887},
        ),
        ZooEntry(
            "emopia-valence",
            "classifier",
            "emotion",
            "valence of piano music, high or low (EMOPIA)",
            licence=UNKNOWN,
            sample_rate_hz=22_050,
            layout="original",
            note=_EMOPIA_NOTE.format("valence"),
            importer=_EMOPIA_IMPORTER,
            metrics={"test accuracy, by its authors": 0.704},
        ),
    )
}
