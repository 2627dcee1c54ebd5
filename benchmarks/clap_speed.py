"""Compares the speed of CLAP's audio tower with that of the laion_clap package, on equal weights.

    python benchmarks/clap_speed.py [clips] [repeats] [device] [HTSAT-tiny|HTSAT-base]

Ours: waves on the device, a batched front end there, transformers' ClapModel. Theirs:
``get_audio_embedding_from_data`` from numpy, as the package is used for scoring (16 bits and
padding clip by clip on the CPU, its own front end). Both get the same 10 s clips at 48 kHz, in
turns, in the same run. Ours runs a second time in bfloat16. It prints the best of ``repeats`` of
each, their ratios, the share of time of each front end, the largest difference of the embeddings,
and the smallest cosine of ours in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from zoo.importers.laion_clap import converted
from zoo.importers.pretrained_clap import load_clap_state
from zoo.rewards.clap import ClapReward
from zoo.rewards.laion_package import AUDIO_MODELS, LaionClapTowers

RATE_HZ, SECONDS = 48_000, 10
# the text tower is not used here
TEXT = {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}


def best_s(
    runs: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """The shortest of ``repeats`` times of each run in seconds, taken in turns after a warm-up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


@torch.no_grad()
def compared(
    theirs: LaionClapTowers, ours: ClapReward, clips: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Seconds of both sides and their front ends, and the largest difference of the embeddings.

    Args:
        theirs: the package's towers.
        ours: the reward with the same weights.
        clips: of 10 s, in a batch.
        repeats: turns; the best counts.
        device: of both.

    Returns:
        "ours", "ours in bfloat16", "theirs", "our front end", "their front end" in seconds, and
        "apart" and "cosine".
    """
    wave_BCN = 0.1 * torch.randn(
        clips, 1, SECONDS * RATE_HZ, generator=torch.Generator().manual_seed(0)
    )
    on_device = wave_BCN.to(device)
    array = wave_BCN[:, 0].numpy()
    package = theirs.package
    branch = package.model.audio_branch
    half = copy.deepcopy(ours).to(torch.bfloat16)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.embed_audio(on_device, RATE_HZ),
        "ours in bfloat16": lambda: half.embed_audio(on_device, RATE_HZ),
        "theirs": lambda: package.get_audio_embedding_from_data(array),
        "our front end": lambda: ours.towers.mel(ours.cut(on_device, RATE_HZ)[:, 0]),
        "their front end": lambda: branch.logmel_extractor(
            branch.spectrogram_extractor(on_device[:, 0])
        ),
    }
    own_BE = ours.embed_audio(on_device, RATE_HZ)
    difference = own_BE - theirs.embed_audio(on_device[:, 0])
    cosine_B = (own_BE * half.embed_audio(on_device, RATE_HZ)).sum(dim=-1)
    return {
        **best_s(runs, repeats, device),
        "apart": difference.abs().max().item(),
        "cosine": cosine_B.min().item(),
    }


def main(clips: int, repeats: int, device: torch.device, audio_model: str) -> None:
    theirs = LaionClapTowers(audio_model=audio_model, text_config=TEXT)
    found = converted(theirs.package.model.state_dict())
    ours = ClapReward(audio_model, "transformers", {"config": found.config})
    load_clap_state(ours.towers.clap, found.state, "the package's random weights")
    result = compared(theirs.to(device), ours.to(device), clips, repeats, device)
    print(
        f"{audio_model}, {clips} clips of {SECONDS} s at {RATE_HZ} Hz on {device},"
        f" {torch.get_num_threads()} threads"
    )
    for side, front_end in (("ours", "our front end"), ("theirs", "their front end")):
        share = result[front_end] / result[side]
        print(f"  {side:7s} {clips / result[side]:8.2f} clips/s, front end {share:.1%} of the time")
    print(
        f"  ratio ours/theirs {result['theirs'] / result['ours']:.2f}; embeddings"
        f" {result['apart']:.1e} apart"
    )
    print(
        f"  ratio bfloat16/float32 {result['ours'] / result['ours in bfloat16']:.2f}; smallest"
        f" cosine {result['cosine']:.5f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=int, nargs="?", default=8, help="clips of 10 s in a batch")
    parser.add_argument(
        "repeats",
        type=int,
        nargs="?",
        default=5,
        help="turns of each side that count; the best is printed",
    )
    parser.add_argument("device", type=torch.device, nargs="?", default="cpu", help="such as cuda")
    parser.add_argument("audio_model", choices=AUDIO_MODELS, nargs="?", default="HTSAT-base")
    main(**vars(parser.parse_args()))
