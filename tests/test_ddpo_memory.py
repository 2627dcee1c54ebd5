"""Backward per step: the memory of an update does not grow with the number of trained steps."""

import torch
from toys import ToyBackbone

from benchmarks.ddpo_memory import measure
from zoo.backbones.lora import add_lora


def test_memory_is_flat_in_the_number_of_trained_steps():
    torch.manual_seed(0)
    backbone = ToyBackbone().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    few, many = measure(backbone, 2), measure(backbone, 8)
    assert many[0] <= 1.05 * few[0]
    assert many[1] > 1.5 * few[1]  # the count does see graphs that stay alive
