"""The zoo's table: valid rows, true rows, and how names are found."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.files import sha256_of
from zoo.hub import registry, store
from zoo.hub.entry import KINDS, UNKNOWN, ZooEntry, is_repo_id, licence_words, needs_consent
from zoo.hub.lock import Pin, write_pin
from zoo.hub.table import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
PLANNED = {"clap_fusion", "spatial_stable_audio"}
PLAIN = {
    "name": "one",
    "kind": "backbone",
    "architecture": "tiny_audio",
    "summary": "x",
    "licence": "mit",
    "sample_rate_hz": 8,
}
HUB = {  # what the systems need, by name: repository, licence
    "audioldm-s-full-v2": ("cvssp/audioldm-s-full-v2", "cc-by-nc-sa-4.0"),
    "audioldm-m-full": ("cvssp/audioldm-m-full", "cc-by-nc-sa-4.0"),
    "audioldm2": ("cvssp/audioldm2", "cc-by-nc-sa-4.0"),
    "audioldm2-large": ("cvssp/audioldm2-large", "cc-by-nc-sa-4.0"),
    "audioldm2-music": ("cvssp/audioldm2-music", "cc-by-nc-sa-4.0"),
    "tango-full": ("declare-lab/tango-full", UNKNOWN),
    "tango-full-ft-audiocaps": ("declare-lab/tango-full-ft-audiocaps", "cc-by-nc-sa-4.0"),
    "tango2": ("declare-lab/tango2", "cc-by-nc-sa-4.0"),
    "tangoflux": ("declare-lab/TangoFlux", "tangoflux-non-commercial"),
    "stable-audio-open-1.0": ("stabilityai/stable-audio-open-1.0", "stable-audio-community"),
    "bewo-nl": ("spw2000/bewo-1m", UNKNOWN),
    "bewo-attri": ("spw2000/bewo-1m", UNKNOWN),
    "bewo-mix": ("spw2000/bewo-1m", UNKNOWN),
    "clap-630k-audioset-best": ("lukewys/laion_clap", "cc0-1.0"),
    "clap-music-audioset": ("lukewys/laion_clap", "cc0-1.0"),
    "clap-htsat-unfused": ("laion/clap-htsat-unfused", "apache-2.0"),
    "larger-clap-music": ("laion/larger_clap_music", "apache-2.0"),
}


@pytest.fixture(autouse=True)
def _empty_store(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_row_is_true(entry: ZooEntry) -> None:
    assert ENTRIES[entry.name] is entry
    assert hash(entry) is not None
    assert (
        entry.architecture in PLANNED
        or registry.why_not_loadable(entry) is None
        or entry.layout != "attune"
    )
    assert entry.base is None or entry.base in ENTRIES or is_repo_id(entry.base)
    assert entry.card is None or (ROOT / entry.card).is_file()
    assert entry.folder or entry.repo_id or "not on the Hub" in entry.note
    if entry.folder is None:
        return
    assert entry.card is not None and entry.layout == "attune"
    config = json.loads((entry.path / "config.json").read_text("utf-8"))
    assert (config["kind"], config["architecture"]) == (entry.kind, entry.architecture)
    there = {
        path.name: sha256_of(path)
        for path in entry.path.iterdir()
        if path.suffix in (".json", ".safetensors")
    }
    assert entry.sha256 == there, (
        f"zoo/hub/table.py must say for {entry.name}: {json.dumps(there, indent=4)}"
    )
    size = sum((entry.path / name).stat().st_size for name in there)
    assert entry.size_bytes == size, (
        f"zoo/hub/table.py must say for {entry.name}: size_bytes={size:_}"
    )


def test_every_embedded_model_has_a_row() -> None:
    folders = {path.parent for path in (ROOT / "zoo/embedded").glob("*/config.json")}
    assert {entry.path for entry in ENTRIES.values() if entry.folder} == folders


@pytest.mark.parametrize("name", HUB)
def test_released_models_have_their_repository_and_licence(name: str) -> None:
    entry = ENTRIES[name]
    assert (entry.repo_id, entry.licence) == HUB[name]
    assert entry.gated == (name == "stable-audio-open-1.0")
    assert entry.needs_consent == (entry.licence not in ("cc0-1.0", "apache-2.0"))


def test_one_repository_serves_several_rows_file_by_file() -> None:
    for repo_id, count in (("lukewys/laion_clap", 7), ("spw2000/bewo-1m", 3)):
        files = [entry.files for entry in ENTRIES.values() if entry.repo_id == repo_id]
        assert len(files) == len(set(files)) == count and all(len(one) == 1 for one in files)
    names = {"emopia-ar-va", "emopia-arousal", "emopia-valence"}
    assert {entry.name for entry in zoo.entries("classifier")} == names
    assert all(ENTRIES[name].sample_rate_hz == 22_050 for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bakbone"}, "unknown kind 'bakbone'; did you mean 'backbone'"),
        ({"layout": "diffuser"}, "unknown layout 'diffuser'; did you mean 'diffusers'"),
        ({"name": "Owner/Model"}, "a name must be small letters"),
        ({"name": "owner/model"}, "only after 'embedded'"),
        ({"folder": "embedded/one", "repo_id": "a/b"}, "not both"),
        ({"repo_id": "ab"}, "repo_id must be owner/name, got 'ab'"),
        ({"repo_id": "a/b", "revision": "main"}, "a commit of 40 hex digits, got 'main'"),
        ({"sha256": {"../x": "0" * 64}}, "relative file names"),
        ({"sha256": {"/x": "0" * 64}}, "relative file names"),
        ({"sha256": {"x": "0" * 63}}, "64 hex digits"),
        ({"licence": ""}, "needs a licence"),
        ({"sample_rate_hz": 0}, "a sample rate in Hz"),
    ],
)
def test_an_invalid_row_is_refused(change, message) -> None:
    ZooEntry(**PLAIN)
    with pytest.raises(ValueError, match=message):
        ZooEntry(**{**PLAIN, **change})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", True),
        ("Owner-1/name_2.x", True),
        ("owner", False),
        ("a/b/c", False),
        ("embedded/music", False),
        ("../b", False),
        ("a/..b", False),
        ("/a/b", False),
        ("./b", False),
        ("a/b:c", False),
        ("a/b c", False),
        ("a/", False),
        ("a--b/c", False),
    ],
)
def test_names_that_count_as_repositories(text, expected) -> None:
    assert is_repo_id(text) is expected


@pytest.mark.parametrize(
    ("licence", "gated", "consent", "words"),
    [
        ("apache-2.0", False, False, "commercial use allowed"),
        ("CC0-1.0", False, False, "commercial use allowed"),
        ("apache-2.0", True, True, "gated: access is granted on its Hub page"),
        (
            "cc-by-nc-4.0",
            False,
            True,
            "not for commercial use; what you derive from it inherits that",
        ),
        ("tangoflux-non-commercial", False, True, "not for commercial use"),
        ("stable-audio-community", False, True, "terms of its publisher"),
        ("unknown", False, True, "nothing is granted"),
        (None, False, True, "unknown: no licence is known"),
    ],
)
def test_licences_that_need_consent(licence, gated, consent, words) -> None:
    assert needs_consent(licence, gated) is consent
    assert words in licence_words(licence, gated)


def test_entries_by_kind_and_pattern() -> None:
    assert {entry.kind for entry in zoo.entries()} <= set(KINDS) and len(zoo.entries()) == len(
        ENTRIES
    )
    assert all(entry.kind == "reward" for entry in zoo.entries(kind="reward"))
    assert [entry.name for entry in zoo.entries(pattern="tango2")] == ["tango2"]
    assert {entry.name for entry in zoo.entries(pattern="Larger")} == {
        entry.name for entry in zoo.entries(pattern="larger-*")
    }
    assert zoo.entries("backbone", "emopia") == () and zoo.entries(pattern="ango") != ()
    with pytest.raises(ValueError, match="kind.*'rewards'.*'reward'"):
        zoo.entries(kind="rewards")
    with pytest.raises(ValueError, match="'tango3'.*'tango2'"):
        registry.entry_of("tango3")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "bewo-nl",
            ValueError,
            "architecture 'spatial_stable_audio' planned, cannot be loaded yet",
        ),
        (
            "audioldm2",
            FileNotFoundError,
            "audioldm2 is not on this machine; fetch it with: python tools/zoo.py pull audioldm2",
        ),
        (
            "emopia-ar-va",
            ValueError,
            "by hand.*zoo.importers.emopia.load_emopia.*not on the Hub",
        ),
        (
            "owner/model",
            FileNotFoundError,
            "not on this machine; fetch it with: python tools/zoo.py pull owner/model",
        ),
        (
            "folder/model",
            ValueError,
            "there is no model 'folder/model', neither a name nor a folder",
        ),
        ("embedded/moos", ValueError, "did you mean 'embedded/mo"),
    ],
)
def test_missing_entries_are_named(monkeypatch, tmp_path, name, error, message) -> None:
    monkeypatch.chdir(tmp_path)
    (
        tmp_path / "folder"
    ).mkdir()  # folder/model is meant as a path then, and nobody on the network is asked
    with pytest.raises(error, match=message):
        registry.find(name)


def test_a_pulled_repository_is_found_and_the_newest_wins(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.newest("owner/model") is None
    for i, revision in enumerate(("a" * 40, "b" * 40)):
        folder = store.place("owner/model", revision)
        folder.mkdir(parents=True)
        assert store.newest("owner/model", revision) is None  # no record: not whole
        store.write_record(folder, store.PullRecord("owner/model", revision, "mit", {}))
        os.utime(folder / store.RECORD, (i, i))
    assert (
        registry.find("owner/model")
        == store.place("owner/model", "b" * 40)
        == store.newest("owner/model")
    )
    assert store.newest("owner/model", "a" * 40) == store.place("owner/model", "a" * 40)
    write_pin("owner/model", Pin("a" * 40, {}))
    assert registry.find("owner/model") == store.place(
        "owner/model", "a" * 40
    )  # what the lock file here pins
    assert store.read_record(store.newest("owner/model")).licence == "mit"
    (store.place("owner/model", "b" * 40) / store.RECORD).write_text('{"repo_id": "x"}')
    with pytest.raises(ValueError, match="is damaged .*pull again"):
        store.read_record(store.place("owner/model", "b" * 40))


def test_the_place_of_pulled_models(monkeypatch) -> None:
    monkeypatch.delenv("ATTUNE_CACHE")
    monkeypatch.setenv("HF_HOME", "/hub/home")
    assert store.place("o/n", "r") == Path("/hub/home/attune/models/o--n/r")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert store.cache_root() == Path("/caches/huggingface/attune")


def test_no_module_shadows_a_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(zoo.__path__)}
    assert modules & set(zoo.__all__) == set()


def test_the_table_is_read_without_torch_or_a_model_library() -> None:
    code = (
        "import sys, zoo; zoo.entries(); zoo.names(); dir(zoo);"
        " from zoo.commands.zoo import parser;"
        " parser(); heavy = {'torch', 'huggingface_hub', 'transformers', 'diffusers',"
        " 'peft', 'safetensors', 'numpy', 'rich', 'yaml'}; assert not heavy & set(sys.modules),"
        " heavy & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_import_benchmark_measures_both_sides() -> None:
    specification = importlib.util.spec_from_file_location(
        "import_time", ROOT / "benchmarks/import_time.py"
    )
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    (wall_s, processor_s), beyond = benchmark.seconds(
        ("import json, decimal", benchmark.STEPS[1]), 1
    )
    assert wall_s > 0 and processor_s > 0
    assert min(beyond) < benchmark.LIMIT_S
    endless = ("-c", "print(1, flush=True); import time; time.sleep(60)")
    assert all(0 < cost < 30 for cost in benchmark.command_seconds(endless, True, 1))
