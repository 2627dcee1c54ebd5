"""The memory of an update is constant in the number of trained steps."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import ToyBackbone

from benchmarks import audioldm2_memory, ddpo_memory
from benchmarks.ddpo_memory import growth, measure
from benchmarks.live_bytes import peak_live_bytes, peak_saved_bytes
from benchmarks.random_audioldm2 import RandomAudioLDM2
from zoo.backbones.lora import add_lora

pytestmark = pytest.mark.long


@pytest.fixture
def toy():
    backbone = ToyBackbone().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    return backbone


def test_activations_are_equal_at_10_50_and_200_steps(toy):
    rows = [measure(toy, steps, samples=1, live=False) for steps in (10, 50, 200)]
    assert growth(rows) <= 0.01
    assert (
        rows[1].reference > 4.5 * rows[0].reference and rows[2].reference > 18 * rows[0].reference
    )
    assert rows[0].reference > 8 * rows[0].ours  # the count does see graphs that stay alive


def test_tensors_of_an_update_do_not_grow_with_the_steps(toy):
    few, many = measure(toy, 3), measure(toy, 30)  # also not by a copy of the latents
    assert (
        many.ours_live - few.ours_live < 27 * 2 * 24 < (many.latents - few.latents) / 2
    )  # ratios, losses and the numbers of rows and steps
    assert many.reference_live > 5 * few.reference_live


def test_activations_of_the_real_class_are_flat():
    torch.manual_seed(0)
    backbone = RandomAudioLDM2("tiny").requires_grad_(False)
    add_lora(backbone, 2, targets="cross")
    one, three = (measure(backbone, steps, samples=1, live=False) for steps in (1, 3))
    assert growth([one, three]) <= 0.01 and three.reference > 2.8 * one.reference
    assert (
        one.latents == 3 * 8 * 26 * 16 * 4
    )  # before, between and after two steps, of which one is trained


def test_growth_is_the_worst_of_all_models():
    rows = [
        ddpo_memory.Memory(name, steps, ours, 1, 1, 1, 1)
        for name, steps, ours in (
            ("a", 10, 100),
            ("a", 50, 100),
            ("b", 10, 10),
            ("b", 50, 12),
            ("b", 200, 11),
        )
    ]
    assert growth(rows) == pytest.approx(0.2)


@pytest.mark.parametrize("fake", [False, True])
def test_storages_are_counted_once_while_they_live(fake):
    mode = FakeTensorMode() if fake else torch.inference_mode(False)
    with mode:
        before = torch.ones(1000)
        with peak_live_bytes() as live:
            first = torch.zeros(1000)
            second = first + before
            assert before.view(10, 100).shape == (10, 100) and before.add_(0.0) is before
            assert live() == 8000  # what was there before does not count, however it is looked at
            del first
            third = second.view(10, 100) * 2  # views are no new memory
            assert live() == 8000
            second.add_(1)
            del second, third
            last = torch.zeros(2500)
            assert live() == 10_000
            del last


def test_saved_tensors_count_until_the_graph_is_freed():
    weight = torch.nn.Linear(10, 10, bias=False)
    x = torch.ones(1, 10, requires_grad=True)
    with peak_saved_bytes(weight) as saved:
        loss = (
            weight(x) ** 2
        ).sum()  # x for the weight, the layer's output for the square; the weight does not count
        assert saved() == 80
        loss.backward()
        (weight(x) ** 2).sum().backward()
        assert saved() == 80
        kept = (weight(x) ** 2).sum(), (weight(x) ** 2).sum()  # noqa: F841 - two graphs at once, x in both
        assert saved() == 120


@pytest.mark.parametrize("size", ["base", pytest.param("large", marks=pytest.mark.slow)])
def test_full_size_keeps_at_most_a_fifth_of_a_gibibyte(size):
    assert (
        0.1 * 2**30
        < audioldm2_memory.measure(size, 10.0, True, False)
        <= audioldm2_memory.KEPT_LIMIT
        == 0.2 * 2**30
    )


def test_the_peak_holds_what_is_kept_and_checkpointing_lowers_both():
    plain, less = (audioldm2_memory.activations("tiny", 2.0, on) for on in (False, True))
    assert (
        plain.kept < plain.peak
        and less.kept < less.peak < 0.7 * plain.peak
        and less.kept < 0.4 * plain.kept
    )


def test_latents_of_a_round():
    assert audioldm2_memory.latents_bytes(10.0, 19, 1) == 20 * 8 * 250 * 16 * 4


def test_the_benchmark_writes_its_table_and_its_picture(tmp_path, capsys, monkeypatch, toy):
    monkeypatch.setattr(ddpo_memory, "models", lambda: {"toy": toy})
    ddpo_memory.main(["--steps", "2", "5", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "memory.json").read_text())
    assert [row["steps"] for row in rows] == [2, 5] and (
        tmp_path / "memory.png"
    ).stat().st_size > 5000
    assert capsys.readouterr().out.count("| toy |") == 2
    monkeypatch.setattr(ddpo_memory, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="memory grows"):
        ddpo_memory.main(["--steps", "2", "--out", str(tmp_path)])
