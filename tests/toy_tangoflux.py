"""The smallest TangoFlux of the real classes: constructor arguments, and its authors' folder."""

import json
from pathlib import Path

import torch
from toy_stable_audio import FRAMES
from toy_stable_audio import arguments as stable_audio
from toy_tango import SMALL, TOKENIZER

ARGUMENTS = {
    "transformer": {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "guidance_embeds": False,
        "axes_dims_rope": [4, 2, 2],
    },
    "text_encoder": SMALL["text_encoder"] | {"pad_token_id": 0, "eos_token_id": 1},
    "vae": stable_audio()["vae"],
    "tokenizer": SMALL["tokenizer"],
    "frames": FRAMES,
}


def small_model(seed: int = 0, **changes):
    """The same weights in every call, whatever the ``changes`` of its knobs."""
    from zoo.backbones.tangoflux import TangoFlux

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TangoFlux(**{**ARGUMENTS, **changes}).eval().requires_grad_(False)


def released_folder(model, folder: Path) -> Path:
    """``model`` in its authors' layout, with the tokenizer of the other repository."""
    from safetensors.torch import save_file

    names = {
        "denoiser": "transformer",
        "text.encoder": "text_encoder",
        "fc": "fc",
        "duration": "duration_emebdder",
    }
    main, vae = {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith("codec.vae."):
            vae[name.removeprefix("codec.vae.")] = tensor.clone()
        elif not name.endswith(
            "encoder.embed_tokens.weight"
        ):  # a second name of text_encoder.shared.weight
            ours = next(prefix for prefix in names if name.startswith(prefix + "."))
            main[names[ours] + name.removeprefix(ours)] = tensor.clone()
    folder.mkdir(parents=True)
    save_file(main, folder / "tangoflux.safetensors")
    save_file(vae, folder / "vae.safetensors")
    sizes = {
        name: model.arguments["transformer"][name]
        for name in (
            "num_layers",
            "num_single_layers",
            "in_channels",
            "attention_head_dim",
            "joint_attention_dim",
            "num_attention_heads",
        )
    }
    settings = {
        "audio_seq_len": FRAMES,
        "max_duration": 30,
        "uncondition": False,
        "text_encoder_name": "google/flan-t5-large",
    }
    (folder / "config.json").write_text(json.dumps(sizes | settings))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def predicting(network):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        tokens = conditioning["tokens_BLD"]
        frames = x.shape[-1]
        attended = torch.cat([conditioning["mask_BL"], torch.ones(len(x), frames).bool()], dim=1)[
            :, None, None
        ]
        return network(
            hidden_states=x.transpose(1, 2),
            timestep=time_B,
            pooled_projections=conditioning["pooled_BD"],
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3),
            img_ids=torch.arange(frames)[:, None].expand(-1, 3),
            joint_attention_kwargs={"attention_mask": attended},
            return_dict=False,
        )[0].transpose(1, 2)

    return predict
