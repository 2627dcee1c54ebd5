"""Settings and fixtures of all tests: no network, repeatable numbers, and golden numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # toys.py, toy_run.py: shared by several test files
os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before anything imports huggingface_hub: tests never reach for the network
)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "disabled")

import numpy
import pytest
import torch

if TYPE_CHECKING:
    from hub_server import HubServer

torch.set_num_threads(
    1
)  # the order of summation, and so the last bits, depends on the number of threads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help=(
            "folder with the golden numbers of the reference implementations (default:"
            " tests/golden)"
        ),
    )
    parser.addoption(
        "--sounds-root",
        type=Path,
        default=Path("/"),
        help=(
            "where the packages of recorded sounds lie (default: /); tests that need them are"
            " skipped without"
        ),
    )


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    """The folder of golden numbers. A missing folder fails the test: parity is never skipped."""
    folder = pytestconfig.getoption("--golden-dir").resolve()
    if not (folder / "README.md").is_file():
        pytest.fail(
            f"no golden numbers in {folder} (README.md is missing); give the right folder with"
            " --golden-dir"
        )
    return folder


@pytest.fixture(scope="session")
def sounds_root(pytestconfig: pytest.Config) -> Path:
    """The root of the small set of sound packages.

    Tests that need it are skipped, saying what installs it, where it lacks.
    """
    from datamodules.sounds.bank import SMALL_SET, SOURCES, install_command

    root = pytestconfig.getoption("--sounds-root").resolve()
    if not all(
        (root / SOURCES[name].place).exists()
        for name in ("opensfx", "gcompris", "sonic-pi", "simutrans")
    ):
        pytest.skip(
            f"the packages of recorded sounds are not below {root}; {install_command(SMALL_SET)},"
            " and --sounds-root=DIR"
        )
    return root


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that holds zoo/, datamodules/, lightning_modules/, configs/ and tools/."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub on 127.0.0.1; ``hub_server.connect`` directs this process to it.

    ``hub_server.environment`` directs another process to it.
    """
    import hub_server

    with hub_server.serving() as server:
        yield server


@pytest.fixture(scope="session")
def pulled_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of pulled models that are small and random (``toy_zoo``); written once."""
    import toy_zoo

    return toy_zoo.pulled(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def small_zoo(
    pulled_models: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Small random models under the zoo names of AudioLDM 2, Tango and CLAP, and EMOPIA's path.

    Gives the working directory, which is empty but for ``models/``.
    """
    import toy_zoo

    folder = tmp_path_factory.mktemp("work")
    toy_zoo.use(monkeypatch, pulled_models, folder)
    return folder


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Starts every test from the same seed, whatever ran before."""
    torch.manual_seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - libraries that we call read the global state


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks readers of golden numbers as parity, and all but long and slow tests as fast."""
    for item in items:
        if "golden_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)
        if not any(item.iter_markers("long")) and not any(item.iter_markers("slow")):
            item.add_marker(pytest.mark.fast)
