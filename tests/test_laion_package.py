"""The laion_clap package as CLAP's towers, with a stand-in and once with the package itself."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from toy_clap import SHORT, VOCABULARY, tokenizer_file

from benchmarks.clap_speed import compared
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward
from zoo.rewards.laion_package import LaionClapTowers
from zoo.types import Prompt


class StandIn(nn.Module):
    """The used part of ``laion_clap.CLAP_Module``; its constructor accesses the Hub."""

    def __init__(
        self, enable_fusion=False, device=None, amodel="HTSAT-tiny", tmodel="roberta"
    ) -> None:
        super().__init__()
        self.asked = (enable_fusion, device, amodel, tmodel)
        self.tokenize = transformers.RobertaTokenizer.from_pretrained("roberta-base")
        self.text_sizes = transformers.RobertaModel.from_pretrained("roberta-base").config
        self.model = nn.Linear(480_000, 4, bias=False)

    def get_audio_embedding_from_data(self, x, use_tensor=False):
        assert use_tensor and x.shape[1] == 480_000
        return nn.functional.normalize(self.model(x), dim=-1)

    def get_text_embedding(self, x, tokenizer=None, use_tensor=False):
        assert use_tensor
        tokens = tokenizer(x)
        self.ids = tokens["input_ids"].tolist()
        return nn.functional.normalize(
            tokens["attention_mask"].sum(dim=1, keepdim=True).expand(-1, 4).float(), dim=-1
        )


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("laion_clap")
    module.CLAP_Module = StandIn
    monkeypatch.setitem(sys.modules, "laion_clap", module)
    return module


SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 40,
}


def test_nothing_is_fetched_and_nothing_stays_changed(package, tmp_path):
    before = list(sys.path)
    own = [
        kind.from_pretrained for kind in (transformers.RobertaTokenizer, transformers.RobertaModel)
    ]
    towers = LaionClapTowers(
        **with_files({"text_config": SMALL, "tokenizer": str(tokenizer_file(tmp_path))})
    )
    assert (
        towers.package.asked == (False, "cpu", "HTSAT-base", "roberta")
        and towers.package.tokenize is None
    )
    assert (
        towers.package.text_sizes.hidden_size == 8
        and towers.package.text_sizes.max_position_embeddings == 514
    )
    assert sys.path == before
    assert own == [
        kind.from_pretrained for kind in (transformers.RobertaTokenizer, transformers.RobertaModel)
    ]
    with pytest.raises(OSError, match="offline"):
        transformers.RobertaModel.from_pretrained("nobody/nothing")


def test_it_is_a_reward_with_gradients_and_the_same_windows(package, tmp_path):
    arguments = {
        "audio_model": "HTSAT-tiny",
        "text_config": SMALL,
        "tokenizer": str(tokenizer_file(tmp_path)),
    }
    reward = ClapReward("stand-in", "laion_clap", with_files(arguments, "laion_clap"))
    wave = torch.randn(2, 2, 16_000, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = reward(wave, 16_000, [Prompt("a", "a dog barks"), Prompt("b", "rain")])
    output.score_B.sum().backward()
    assert (
        reward.differentiable
        and wave.grad.abs().sum() > 0
        and list(output.parts) == ["clap/stand-in"]
    )
    assert (
        reward.towers.package.ids == [[0, VOCABULARY["rain"], 2]]
        and reward.arguments["arguments"]["tokenizer_bytes"] > 0
    )
    assert "tokenizer" not in reward.arguments["arguments"]
    expected = reward.towers.embed_audio(reward.cut(wave, 16_000)[:, 0])
    assert torch.allclose(reward.embed_audio(wave, 16_000), expected, atol=1e-6)


def test_a_checkpoint_is_loaded_strictly(package, tmp_path):
    weight = torch.randn(4, 480_000)
    state = {"module.weight": weight, "module.text_branch.embeddings.position_ids": torch.arange(3)}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    audio_only = {"tokenizer": "none", "text_config": SMALL}
    found = with_files({"pretrained": str(tmp_path / "a.pt"), **audio_only}, "laion_clap")
    towers = LaionClapTowers(**found)
    assert torch.equal(towers.package.model.weight, weight) and "pretrained" not in towers.arguments
    with pytest.raises(ValueError, match="no tokenizer"):
        towers.embed_text(["rain"])
    torch.save({"state_dict": state | {"module.bias": weight}}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"(?s)b\.pt do not fit laion_clap's HTSAT-base.*bias"):
        LaionClapTowers(
            **with_files({"pretrained": str(tmp_path / "b.pt"), **audio_only}, "laion_clap")
        )


def test_a_missing_package_names_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "laion_clap", None)
    with pytest.raises(ValueError, match=r"pip install 'laion-clap>=1\.1\.7,<2'"):
        LaionClapTowers(text_config=SMALL)
    with pytest.raises(ValueError, match="did you mean 'HTSAT-base'"):
        LaionClapTowers(audio_model="HTSAT-bas")
    with pytest.raises(
        FileNotFoundError,
        match="'roberta-nowhere'.*HF_HUB_OFFLINE",
    ):
        with_files({"tokenizer": "roberta-nowhere"}, "laion_clap")


def test_the_speed_benchmark_measures_both_sides_on_the_same_clips():
    seen = []
    package = types.SimpleNamespace(
        get_audio_embedding_from_data=lambda array: seen.append(array.shape),
        model=types.SimpleNamespace(
            audio_branch=types.SimpleNamespace(
                spectrogram_extractor=lambda wave: wave, logmel_extractor=lambda power: power
            )
        ),
    )
    ours = ClapReward("x", "transformers", SHORT, windows="first")
    theirs = types.SimpleNamespace(
        package=package, embed_audio=lambda wave: ours.embed_audio(wave[:, None], 48_000) + 0.5
    )
    result = compared(theirs, ours, 1, 2, torch.device("cpu"))
    assert seen == [(1, 480_000)] * 3 and result.pop("apart") == pytest.approx(0.5, abs=1e-3)
    assert result.pop("cosine") > 0.999
    assert set(result) == {
        "ours",
        "ours in bfloat16",
        "theirs",
        "our front end",
        "their front end",
    }
    assert 0 < result["our front end"] < result["ours"] < 60


@pytest.mark.slow
def test_the_package_itself_imports_offline_and_agrees_with_our_towers():
    """In another process, as its import takes long and leaves modules ``tests``, ``training``."""
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "benchmarks.clap_speed", "1", "1", "cpu", "HTSAT-tiny"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"embeddings (\S+) apart", done.stdout)[1]) < 1e-5


@pytest.mark.parametrize("missing", ["laion_clap", "torchvision"])
def test_what_is_missing_is_named_with_the_command_for_it(missing, monkeypatch, tmp_path):
    """Neither is a requirement on Python 3.13; the package imports torchvision."""
    for name in [name for name in sys.modules if name.split(".")[0] == "laion_clap"]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "torchvision":
        (tmp_path / "laion_clap").mkdir()
        (tmp_path / "laion_clap" / "__init__.py").write_text("import torchvision.transforms\n")
        monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "torchvision.transforms", raising=False)
    with pytest.raises(
        ValueError, match=f"{missing}.*pip install .*{missing.replace('_', '.')}"
    ) as caught:
        LaionClapTowers(text_config=SMALL)
    assert "\n" not in str(caught.value) and "towers=transformers" in str(caught.value)
