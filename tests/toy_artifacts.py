"""Model folders for tests: a small complete one, and the run folder of a finished quickstart."""

from __future__ import annotations

from pathlib import Path

import torch
from toys import SMALL

import zoo
from lightning_modules import run_folder
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.configuration import read_configuration
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import save_artifact

QUICKSTART = Path(__file__).resolve().parents[1] / "configs/ddpo/quickstart.yaml"
CARD = "---\nlicense: apache-2.0\nlibrary_name: attune\n---\n# A model\n"


def model_folder(folder: Path, seed: int = 0, **facts: object) -> Path:
    """A backbone of a few thousand weights with a card, like an export."""
    torch.manual_seed(seed)
    what = {
        "kind": "backbone",
        "architecture": "tiny_audio",
        "arguments": SMALL,
        "licence": "apache-2.0",
        **facts,
    }
    save_artifact(folder, module=TinyAudio(**SMALL), **what)
    (folder / "README.md").write_text(CARD)
    return folder


def quickstart_run(folder: Path) -> Path:
    """The quickstart's configuration, and an audible adapter for it on embedded/music."""
    config = read_configuration([QUICKSTART], [f"out_dir={folder}"])
    run_folder.write_config(folder, config.to_dict(), ["python", "tools/fit.py"], None)
    backbone = zoo.load(config.module["backbone"]["name"])
    add_lora(
        backbone, config.module["adapter"]["rank"], targets=config.module["adapter"]["targets"]
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in backbone.denoiser.named_parameters():
            if ".lora_B." in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    save_adapter(backbone, folder / "adapter")
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file but hidden ones: relative name -> bytes."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
