"""A torchaudio that does not fit torch is named in one line, with the command that fixes it."""

import importlib

import pytest

import zoo
from zoo import versions
from zoo.errors import reported


def pretend(monkeypatch, torch, torchaudio, torchvision="0.26.0"):
    numbers = dict(zip(versions.PACKAGES, (torch, torchaudio, torchvision), strict=True))

    def version(package):
        if numbers[package] is None:
            raise versions.PackageNotFoundError(package)
        return numbers[package]

    monkeypatch.setattr(versions, "version", version)


@pytest.mark.parametrize("torch", ["2.11.0", "2.11.0+cu128"])
def test_the_pair_that_cannot_load_is_named_before_anything_starts(monkeypatch, capsys, torch):
    pretend(monkeypatch, torch, "2.11.1")
    assert reported(lambda argv: pytest.fail("it started"), []) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "torch 2.11.0, torchaudio 2.11.1" in printed
    assert "pip install torch==2.11.0 torchaudio==2.11.0 torchvision==0.26.0" in printed


@pytest.mark.parametrize(
    "pair", [("2.14.1", "2.11.1"), ("2.11.0", "2.11.0"), (None, None), ("2.12.0", "2.11.1")]
)
def test_other_pairs_start(monkeypatch, pair):
    pretend(monkeypatch, *pair)
    assert reported(lambda argv: None, []) == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError("/x/torchaudio/lib/libtorchaudio.so: undefined symbol: aoti_torch_abi"),
        ImportError("Could not load this library: /x/torchaudio/lib/libtorchaudio.so"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
)
def test_a_library_that_does_not_load_is_named(monkeypatch, capsys, error):
    pretend(monkeypatch, "2.13.0", "2.11.1", None)

    def main(argv):
        raise error

    assert reported(main, []) == 2
    printed = capsys.readouterr().err
    assert "torch 2.13.0, torchaudio 2.11.1, torchvision missing" in printed
    assert "pip install torch==2.14.1 torchaudio==2.11.1 torchvision==0.29.1" in printed


def test_it_is_named_in_python_too(monkeypatch):
    def broken(name):
        raise OSError("libtorchaudio.so: undefined symbol: x (torchaudio)")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(versions.VersionError, match="pip install"):
        _ = zoo.load


def test_the_first_use_in_python_checks_the_pair(monkeypatch):
    pretend(monkeypatch, "2.11.0", "2.11.1")
    with pytest.raises(versions.VersionError, match=r"torchaudio==2\.11\.0"):
        _ = zoo.generate


@pytest.mark.parametrize("error", [RuntimeError("torchaudio is fun"), ImportError("no module x")])
def test_other_errors_stay_what_they_are(error):
    def main(argv):
        raise error

    with pytest.raises(type(error), match=str(error)):
        reported(main, [])
