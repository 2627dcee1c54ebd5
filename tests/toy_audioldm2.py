"""The smallest AudioLDM 2 of the real classes: constructor arguments, and a diffusers folder."""

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from zoo.conditioners.tokenizer import pack_tokenizer

TEXTS = [
    "a dog barks to the left while rain falls",
    "calm piano melody, warm strings",
    "upbeat techno, strong kick drum",
] * 4
WIDTH, T5_WIDTH, CLAP_WIDTH = 16, 32, 24


def trained(tokenizer: Tokenizer, trainer) -> dict:
    tokenizer.train_from_iterator(TEXTS, trainer)
    return json.loads(tokenizer.to_str())["model"]


@cache
def tokenizers():
    """A RoBERTa and a T5 tokenizer of a few hundred tokens."""
    from transformers import RobertaTokenizer, T5Tokenizer

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    bpe = trained(words, trainers.BpeTrainer(vocab_size=320, **settings))
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in bpe["merges"]
    ]
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    unigram = trained(
        pieces,
        trainers.UnigramTrainer(
            vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    return (
        RobertaTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=100),
        T5Tokenizer(
            vocab=[tuple(piece) for piece in unigram["vocab"]], model_max_length=80, extra_ids=0
        ),
    )


def arguments() -> dict:
    """Plain JSON values for ``AudioLDM2``; about 200 000 weights."""
    clap, t5 = tokenizers()
    return {
        "unet": {
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 2,
            "cross_attention_dim": [[None, WIDTH, T5_WIDTH]] * 2,
        },
        "vae": {
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 4,
            "block_out_channels": [8, 16],
            "norm_num_groups": 8,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "scaling_factor": 0.5,
        },
        "vocoder": {
            "model_in_dim": 8,
            "sampling_rate": 16000,
            "upsample_initial_channel": 32,
            "upsample_rates": [5, 4, 2, 2, 2],
            "upsample_kernel_sizes": [16, 16, 8, 4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "initializer_range": 0.2,
        },
        "projection": {
            "text_encoder_dim": CLAP_WIDTH,
            "text_encoder_1_dim": T5_WIDTH,
            "langauge_model_dim": WIDTH,
        },
        "clap_text": {
            "hidden_size": 8,
            "intermediate_size": 37,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "vocab_size": len(clap),
            "projection_dim": CLAP_WIDTH,
        },
        "t5": {
            "vocab_size": len(t5),
            "d_model": T5_WIDTH,
            "d_ff": 37,
            "d_kv": 8,
            "num_heads": 1,
            "num_layers": 1,
        },
        "gpt2": {
            "n_embd": WIDTH,
            "n_head": 2,
            "n_layer": 2,
            "vocab_size": 64,
            "n_positions": 99,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "scheduler": {
            "beta_start": 0.0015,
            "beta_end": 0.0195,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "epsilon",
            "num_train_timesteps": 1000,
        },
        "clap_tokenizer": pack_tokenizer(clap.backend_tokenizer.to_str()),
        "t5_tokenizer": pack_tokenizer(t5.backend_tokenizer.to_str()),
        "clap_max_tokens": 100,
        "t5_max_tokens": 80,
    }


def small_model(seed: int = 0):
    """The same weights in every call; the denoiser depends on its conditions strongly."""
    from zoo.backbones.audioldm2 import AudioLDM2

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AudioLDM2(**arguments()).eval().requires_grad_(False)
        for name, parameter in model.denoiser.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.mul_(4)
    return model


def pipeline(model):
    """The diffusers pipeline around the networks of ``model``."""
    from diffusers import AudioLDM2Pipeline, DDIMScheduler
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, GPT2LMHeadModel

    audio = {
        "spec_size": 256,
        "num_mel_bins": 64,
        "window_size": 8,
        "patch_size": 4,
        "patch_stride": 4,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "projection_dim": CLAP_WIDTH,
    }
    clap = ClapModel(
        ClapConfig(
            projection_dim=CLAP_WIDTH, text_config=model.arguments["clap_text"], audio_config=audio
        )
    ).eval()
    clap.text_model = model.clap_text.text_model
    clap.text_projection = model.clap_text.text_projection
    language_model = GPT2LMHeadModel(model.gpt2.config).eval()
    language_model.transformer = model.gpt2
    language_model.config.max_new_tokens = 8
    clap_tokenizer, t5_tokenizer = tokenizers()
    return AudioLDM2Pipeline(
        vae=model.codec.vae,
        text_encoder=clap,
        text_encoder_2=model.t5,
        projection_model=model.projection,
        language_model=language_model,
        tokenizer=clap_tokenizer,
        tokenizer_2=t5_tokenizer,
        feature_extractor=ClapFeatureExtractor(),
        unet=model.denoiser,
        scheduler=DDIMScheduler(**model.arguments["scheduler"]),
        vocoder=model.codec.vocoder,
    )


def written_folder(model, folder: Path) -> Path:
    """``model`` as its authors publish it: the parts of the pipeline."""
    made = pipeline(model)
    made.save_pretrained(str(folder))
    model.gpt2.config.max_new_tokens = 8
    model.gpt2.save_pretrained(str(folder / "language_model"))
    return folder


def predicting(unet):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        return unet(
            x,
            time_B,
            encoder_hidden_states=conditioning["loa_BLD"],
            encoder_hidden_states_1=conditioning["t5_BLD"],
            encoder_attention_mask_1=conditioning["t5_mask_BL"],
            return_dict=False,
        )[0]

    return predict
