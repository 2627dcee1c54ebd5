"""The smallest Stable Audio of the real classes: constructor arguments, and a diffusers folder."""

from pathlib import Path

import torch
from toy_audioldm2 import tokenizers

from zoo.conditioners.tokenizer import pack_tokenizer

WIDTH = 16
HOP, FRAMES, RATE_HZ = 128, 128, 16_000  # 125 frames a second, 1.024 s at most
TOKENS = 80  # the longest text of the toy tokenizer


def arguments() -> dict:
    """Plain JSON values for ``StableAudio``; about 50 000 weights."""
    _, words = tokenizers()
    return {
        "transformer": {
            "sample_size": FRAMES,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
            "cross_attention_dim": WIDTH,
            "time_proj_dim": 16,
            "global_states_input_dim": 2 * WIDTH,
            "cross_attention_input_dim": WIDTH,
        },
        "vae": {
            "encoder_hidden_size": 8,
            "decoder_input_channels": 4,
            "decoder_channels": 4,
            "downsampling_ratios": [2, 8, 8],
            "channel_multiples": [1, 2, 4],
            "audio_channels": 2,
            "sampling_rate": RATE_HZ,
        },
        "text_encoder": {
            "vocab_size": len(words),
            "d_model": WIDTH,
            "d_ff": 37,
            "d_kv": 8,
            "num_heads": 1,
            "num_layers": 1,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        "projection": {
            "text_encoder_dim": WIDTH,
            "conditioning_dim": WIDTH,
            "min_value": 0,
            "max_value": 512,
        },
        "scheduler": {
            "sigma_min": 0.3,
            "sigma_max": 500,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
            "solver_order": 2,
            "prediction_type": "v_prediction",
            "num_train_timesteps": 1000,
        },
        "tokenizer": pack_tokenizer(words.backend_tokenizer.to_str()),
        "max_tokens": TOKENS,
    }


def small_model(seed: int = 0, **changes):
    """The same weights in every call, whatever the ``changes`` of its knobs."""
    from zoo.backbones.stable_audio import StableAudio

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = StableAudio(**{**arguments(), **changes}).eval().requires_grad_(False)
        for name, parameter in model.denoiser.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.mul_(4)
    return model


def pipeline(model, order: int = 2):
    """The diffusers pipeline around the networks of ``model``."""
    from diffusers import CosineDPMSolverMultistepScheduler, StableAudioPipeline

    scheduler = CosineDPMSolverMultistepScheduler(
        **{**arguments()["scheduler"], "solver_order": order}
    )
    made = StableAudioPipeline(
        vae=model.codec.vae,
        text_encoder=model.text.encoder,
        projection_model=model.projection,
        tokenizer=tokenizers()[1],
        transformer=model.denoiser,
        scheduler=scheduler,
    )
    made.set_progress_bar_config(disable=True)
    return made


def written_folder(model, folder: Path) -> Path:
    """``model`` as its authors publish it."""
    pipeline(model).save_pretrained(str(folder))
    return folder


def predicting(network):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    def predict(x, time_B, conditioning):
        positions = get_1d_rotary_pos_embed(
            4, x.shape[-1] + 1, use_real=True, repeat_interleave_real=False
        )
        return network(
            x,
            time_B,
            encoder_hidden_states=conditioning["tokens_BLD"],
            rotary_embedding=positions,
            global_hidden_states=conditioning["timing_BD"].unsqueeze(1),
            return_dict=False,
        )[0]

    return predict
