"""A run that starts from the adapter of another run."""

import json

import pytest
import torch
from toy_ddpo import fitted, module, trainer, weights
from toys import Rounds, ToyBackbone, shaken

from lightning_modules.audio_samples import AudioSamples
from lightning_modules.rl.ddpo import DDPO
from zoo.backbones.lora import add_lora, reference
from zoo.hub.adapters import save_adapter
from zoo.hub.export_record import export_record


@pytest.fixture
def adapter(tmp_path):
    backbone = ToyBackbone()
    add_lora(backbone, 2)
    shaken(backbone.denoiser)
    return str(save_adapter(backbone, tmp_path / "adapter"))


def of(ddpo: DDPO, x: torch.Tensor) -> torch.Tensor:
    conditioning = ddpo.backbone.encode_prompts(next(iter(Rounds(2))).prompts)
    with torch.no_grad():
        return ddpo.backbone.predict(x, torch.full((2,), 0.5), conditioning)


def test_a_run_starts_from_an_adapter_and_its_reference_stays_the_base(adapter):
    started = module({"adapter.start": adapter})
    plain = module()
    x = torch.ones(2, 2, 8)
    saved = shaken(module().backbone.denoiser)
    own = dict(started.backbone.denoiser.named_parameters())
    learning = {name: p for name, p in saved.named_parameters() if "lora_" in name}
    assert learning and all(torch.equal(own[name], p) for name, p in learning.items())
    assert all(own[name].requires_grad for name in learning)
    assert not torch.equal(of(started, x), of(plain, x))
    with reference(started.backbone):
        assert torch.equal(of(started, x), of(plain, x))


def test_its_resume_is_bitwise(adapter, tmp_path):
    whole = module({"adapter.start": adapter})
    fitted(whole, epochs=4)
    first = module({"adapter.start": adapter})
    fitted(first, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    second = module({"adapter.start": adapter})
    half = tmp_path / "half.ckpt"
    trainer(4).fit(second, Rounds(8, start=2), ckpt_path=half, weights_only=True)
    ended = weights(second)
    assert all(torch.equal(value, ended[name]) for name, value in weights(whole).items())


def test_audio_before_is_where_the_run_started(adapter, tmp_path):
    def before(start):
        ddpo = module({"adapter.start": start})
        samples = AudioSamples(tmp_path / "audio", count=2)
        untrained = module({"adapter.start": start})
        fitted(ddpo, callbacks=[samples])
        saved = json.loads((tmp_path / "audio" / "before" / "samples.json").read_text())
        assert [one["score"] for one in saved] == pytest.approx(
            untrained.evaluate(samples.batch).score_B.tolist(), abs=1e-6
        )
        return [one["score"] for one in saved]

    assert before(None) != before(adapter)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter.rank": 3}, "module.adapter.rank=2"),
        ({"adapter.alpha": 5.0}, "module.adapter.alpha=2"),
        ({"adapter.rank": 0}, "module.adapter.rank=2"),
        ({"adapter.targets": "all"}, "differs"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(adapter, changes, named):
    with pytest.raises(ValueError, match=named):
        module({"adapter.start": adapter}, **changes)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no adapter"):
        module({"adapter.start": str(tmp_path)})


def test_the_export_names_what_a_run_started_from_without_a_local_path(tmp_path):
    done = tmp_path / "adapter"
    for start, recorded in (("/home/me/runs/one/adapter", "one/adapter"), (None, None)):
        settings = {"module": {"backbone": {"name": "embedded/music"}}}
        facts = DDPO.export_facts({"adapter": {"start": start}})
        record = export_record(tmp_path, settings, facts, done)
        assert record["training"].get("started_from") == recorded
        assert record["base"]["name"] == "embedded/music"
