"""The smallest AudioLDM of the real classes: constructor arguments, and a diffusers folder."""

from pathlib import Path

import torch
import toy_audioldm2

from zoo.backbones.audioldm import AudioLDM


def arguments() -> dict:
    """JSON arguments for ``AudioLDM``; parts of both generations come from ``toy_audioldm2``."""
    shared = toy_audioldm2.arguments()
    unet = shared["unet"] | {
        "cross_attention_dim": [8, 16],
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": toy_audioldm2.CLAP_WIDTH,
    }
    names = ("vae", "vocoder", "clap_text", "scheduler", "clap_tokenizer")
    return {"unet": unet, **{name: shared[name] for name in names}, "max_tokens": 100}


def small_model(seed: int = 0, **changes) -> AudioLDM:
    """The same weights in every call; its text matters more than in a random denoiser."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AudioLDM(**arguments() | changes).eval().requires_grad_(False)
        model.denoiser.class_embedding.weight.mul_(20)
    return model


def pipeline(model: AudioLDM):
    """The diffusers pipeline around the networks of ``model``."""
    from diffusers import AudioLDMPipeline, DDIMScheduler

    return AudioLDMPipeline(
        vae=model.codec.vae,
        text_encoder=model.clap_text,
        tokenizer=toy_audioldm2.tokenizers()[0],
        unet=model.denoiser,
        scheduler=DDIMScheduler(**model.arguments["scheduler"]),
        vocoder=model.codec.vocoder,
    )


def written_folder(model: AudioLDM, folder: Path) -> Path:
    """``model`` as its authors publish it."""
    pipeline(model).save_pretrained(str(folder))
    return folder


def predicting(unet):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        return unet(
            x,
            time_B,
            encoder_hidden_states=None,
            class_labels=conditioning["clap_BD"],
            return_dict=False,
        )[0]

    return predict
