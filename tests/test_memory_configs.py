"""Configurations per memory class: what they change, and the arithmetic in their comments."""

import re

import pytest
from toy_run import flat

from benchmarks import audioldm2_memory
from lightning_modules import run
from lightning_modules.optimizers import OPTIMIZERS
from zoo.configuration import Run, read_configuration

FOLDER = "configs/ddpo/memory"
CLASSES = {"16gb": 16, "24gb": 24, "80gb": 80}
ROW = "configs/ddpo/music_rlhf/fig5d.yaml"
OVERHEAD_GB = 3.0  # CUDA, its allocator, decoding and the reward's activations
ONLY_MEMORY = {
    "module.backbone.checkpoint_activations",
    "module.memory.text_encoders",
    "module.optimizer.name",
}


def changed(before: Run, after: Run) -> set[str]:
    old, new = flat(before.to_dict()), flat(after.to_dict())
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def parts(config: Run) -> dict[str, float]:
    module, data = config.module, config.data
    samples = data["prompts_per_round"] * data["repeats"]
    latents = audioldm2_memory.latents_bytes(data["seconds"], module["sampler"]["steps"], samples)
    peak = audioldm2_memory.PEAK[module["backbone"]["checkpoint_activations"]]
    return audioldm2_memory.run_parts(
        "base",
        peak,
        module["update"]["batch_size"],
        latents,
        module["memory"]["text_encoders"] == "keep",
    )


@pytest.mark.parametrize("name", CLASSES)
def test_the_sum_in_its_comment_is_counted_and_fits(project_root, name):
    path = project_root / FOLDER / f"{name}.yaml"
    config = read_configuration([path])
    text = path.read_text("utf-8")
    found = parts(config)
    assert float(re.search(r"#   sum: ([\d.]+) GB", text)[1]) == round(sum(found.values()), 1)
    assert sum(found.values()) + OVERHEAD_GB <= CLASSES[name]
    numbers = {
        f"{gigabytes:.2f}"
        for part, gigabytes in found.items()
        if part != "activations" and gigabytes
    }
    assert all(number in text for number in numbers), numbers
    assert (
        f"activations: {config.module['update']['batch_size']} x"
        f" {found['activations'] / config.module['update']['batch_size']:.2f} GB" in text
    )
    assert "Not run on such a GPU" in text and config.module["backbone"]["dtype"] is None


@pytest.mark.parametrize("name", CLASSES)
def test_it_can_overlay_a_row_and_its_rounds_divide(project_root, name):
    row = read_configuration([project_root / ROW])
    config = read_configuration([project_root / ROW, project_root / FOLDER / f"{name}.yaml"])
    differs = changed(row, config)
    if name != "80gb":
        assert differs <= ONLY_MEMORY
    assert config.seed == row.seed and config.out_dir == row.out_dir
    module = config.module
    samples = config.data["prompts_per_round"] * config.data["repeats"]
    assert (
        samples % module["sampler"]["batch_size"] == 0
        and module["sampler"]["batch_size"] == module["update"]["batch_size"]
    )
    assert samples % (module["update"]["batch_size"] * module["update"]["per_round"]) == 0


@pytest.mark.long
def test_the_whole_denoiser_with_eight_bits_builds(project_root, small_zoo, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "adamw_8bit", ("torch.optim", "SGD", ""))
    text = (project_root / FOLDER / "24gb.yaml").read_text("utf-8")
    overrides = re.findall(r"module\.[\w.]+=\S+", text)
    assert {
        "module.adapter.rank=0",
        "module.optimizer.name=adamw_8bit",
        "module.backbone.checkpoint_activations=true",
    } <= set(overrides)
    module = run.build(read_configuration([project_root / FOLDER / "24gb.yaml"], overrides)).module
    weights = set(module.backbone.denoiser.parameters())
    assert weights == {parameter for parameter in module.parameters() if parameter.requires_grad}
    assert module.optimizer.name == "adamw_8bit" and module.memory.text_encoders == "offload"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_sample_is_as_counted(checkpointing):
    counted = audioldm2_memory.activations("base", 10.0, checkpointing)
    assert counted.peak == pytest.approx(audioldm2_memory.PEAK[checkpointing], rel=0.01)
