"""Cards: a header that the Hub accepts, the inherited licence, numbers with protocol, code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from toy_export import BASE, named_base, random_model, trained
from toys import SMALL

import zoo
from zoo.hub.artifact import save_artifact
from zoo.hub.artifact_check import verify_artifact
from zoo.hub.card_snippets import PLACE
from zoo.hub.cards import CARDS, body_path, card_for, check_card, licence_of, portable, with_place
from zoo.hub.export import export_run
from zoo.hub.table import ENTRIES

EMBEDDED = [name for name, entry in ENTRIES.items() if entry.path is not None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    with named_base(folder / "base"):
        yield folder


@pytest.fixture(scope="module")
def run(place):
    return trained(place / "ddpo_quickstart", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def adapter(run, place):
    return export_run(run, place / "adapter")


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def executed(card: str, where: Path, folder: Path, monkeypatch) -> list[dict]:
    """Runs every python block of the card in ``folder`` and returns the names that it defined.

    ``where`` replaces the place-holder.
    """
    assert PLACE in card and PLACE not in with_place(card, str(where))
    monkeypatch.chdir(folder)
    made = []
    for code in blocks(with_place(card, str(where))):
        made.append({})
        exec(compile(code, "README.md", "exec"), made[-1])
    return made


@pytest.mark.long
def test_the_adapters_card_runs_and_both_ways_of_loading_sound_the_same(
    adapter, tmp_path, monkeypatch
):
    card = (adapter / "README.md").read_text()
    ours, plain = executed(card, adapter, tmp_path, monkeypatch)
    assert (tmp_path / "out.wav").stat().st_size > 1000
    assert (
        ours["settings"]
        == {"steps": 3, "guidance_scale": 1.5, "eta": 1.0, "rule": "ddim", "seconds": 0.256}
        and ours["prompt"] == "A merry piano"
    )
    (wave,) = zoo.generate(plain["base"], [ours["prompt"]], seeds=[0], **ours["settings"])
    assert torch.equal(wave.samples_CN, ours["wave"].samples_CN)


def test_the_merged_models_card_runs(run, tmp_path, monkeypatch):
    folder = export_run(run, tmp_path / "merged", merge=True)
    (made,) = executed((folder / "README.md").read_text(), folder, tmp_path, monkeypatch)
    assert (tmp_path / "out.wav").is_file() and made["wave"].sample_rate_hz == 16_000


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_have_cards_that_run(name, tmp_path, monkeypatch):
    folder = ENTRIES[name].path
    card = card_for(folder)
    assert (
        header(card)["license"] == ENTRIES[name].licence
        and f"# {name}" in card
        and "](../" not in card
    )
    monkeypatch.setattr(
        zoo, "generate", lambda *a, **k: quick(*a, **{**k, "steps": 1, "seconds": 0.512})
    )
    quick = zoo.generation.generate
    (made,) = executed(card, folder, tmp_path, monkeypatch)
    assert "wave" in made or "reward" in made


def test_header(adapter):
    found = header((adapter / "README.md").read_text())
    assert found["license"] == "cc-by-nc-sa-4.0" == licence_of(adapter)
    assert (
        found["pipeline_tag"] == "text-to-audio"
        and found["library_name"] == "peft"
        and found["language"] == "en"
    )
    assert {"attune", "adapter", "lora", "ddpo", "music"} == set(found["tags"])
    assert "base_model" not in found  # tiny-base is no owner/name
    (model,) = found["model-index"]
    numbers = {
        metric["type"]: metric["value"]
        for result in model["results"]
        for metric in result["metrics"]
    }
    metrics = json.loads((adapter / "config.json").read_text())["metrics"]
    assert numbers["held_out_mean"] == round(metrics["held_out/mean"]["after"], 6)


def test_a_base_on_the_hub_is_named_by_its_repository(adapter, tmp_path):
    config = json.loads((adapter / "config.json").read_text())
    bases = {
        "audioldm2": "cvssp/audioldm2",
        "someone/model": "someone/model",
        "embedded/music": "embedded/music",
    }
    for base, repo in bases.items():
        config["base"]["name"] = base
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = header(card_for(tmp_path, "x"))
        assert found["base_model"] == repo and found["base_model_relation"] == "adapter"
    whole = {"kind": "backbone", "architecture": "tiny_audio", "arguments": {}}
    (tmp_path / "config.json").write_text(json.dumps(config | whole))
    assert header(card_for(tmp_path, "x"))["base_model_relation"] == "finetune"


def test_body_holds_what_a_reader_needs(adapter):
    card = (adapter / "README.md").read_text()
    metrics = json.loads((adapter / "config.json").read_text())["metrics"]["held_out/mean"]
    for wanted in (
        "# adapter",
        "## Intended use",
        "## Training data",
        "## Reward and its known hacks",
        "## Measured",
        "## Limits",
        f"| all | {metrics['before']:.3f} | {metrics['after']:.3f} |",
        "always from the same noise",
        "One run, one seed",
        "not for commercial use; what you derive from it inherits that",
        "  - words: happy (merry",
        "  - held_out: merry piano",
    ):
        assert wanted in card, wanted
    assert "{{" not in card and "<!--" not in card


def test_known_hacks_come_from_the_rewards_own_card(adapter, tmp_path):
    config = json.loads((adapter / "config.json").read_text())
    config["training"]["reward"] = "embedded/mood"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "Known weakness: it has heard four moods of one generator only" in card_for(tmp_path)
    config["training"]["reward"] = "embedded/clap"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "Known hacks: an optimiser" in card_for(tmp_path)


def test_a_run_of_another_name_gets_the_template(run, place, tmp_path):
    folder = export_run(run, tmp_path / "mine", card="_template")
    card = (folder / "README.md").read_text()
    assert "# mine" in card
    intended = (CARDS / "_template.md").read_text().split("## Intended use\n\n")[1]
    assert intended.split("\n\n")[0] in card
    assert len(blocks(card)) == 2


def test_what_a_body_leaves_out_is_appended(adapter, tmp_path, monkeypatch):
    (tmp_path / "cards").mkdir()
    monkeypatch.setattr("zoo.hub.cards.CARDS", tmp_path / "cards")
    assert "Nobody has written a description" in card_for(adapter) and "## Results" in card_for(
        adapter
    )
    (tmp_path / "cards" / "ddpo_quickstart.md").write_text("# {{name}}\n\nFine music.\n")
    card = card_for(adapter, "own")
    places = [
        card.index(text) for text in ("# own", "Fine music.", "## Results", "## Use", "## Licence")
    ]
    assert places == sorted(places)
    for body, message in (
        ("# x\n{{reslts}}\n", "unknown place {{reslts}}; did you mean 'results'"),
        ("no title\n", "begin with a title"),
        ("---\npipeline_tag: music\n---\n# x\n", "pipeline_tag must be one of"),
    ):
        (tmp_path / "cards" / "ddpo_quickstart.md").write_text(body)
        with pytest.raises(ValueError, match=message):
            card_for(adapter)


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_every_body_makes_a_valid_card(path, adapter, tmp_path):
    config = json.loads((adapter / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"card": path.stem}))
    check_card(card_for(tmp_path), path.name)


def test_a_card_name_is_not_a_path():
    for name in ("../secrets", ".hidden", "", "a b"):
        with pytest.raises(ValueError, match="a card's name must be letters"):
            body_path(name)
    assert body_path("embedded/music") == CARDS / "embedded_music.md"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("---\n", ""), "has no header"),
        (
            ("license: cc-by-nc-sa-4.0", "license: cc-nc"),
            "license 'cc-nc' is not one that the Hub knows",
        ),
        (("license: cc-by-nc-sa-4.0\n", ""), "license None is not one that the Hub knows"),
        (("license: cc-by-nc-sa-4.0", "license: other"), "license other needs a license_name"),
        (
            ("pipeline_tag: text-to-audio", "pipeline_tag: text-to-music"),
            "pipeline_tag must be one of .*got 'text-to-music'",
        ),
        (("library_name: peft", "base_model: /etc/passwd"), "base_model must be owner/name"),
        (("library_name: peft", "library_name: [peft"), "the header cannot be read"),
        (("  results:", "  reslts:"), "the header cannot be read"),
    ],
)
def test_bad_cards(adapter, change, message):
    with pytest.raises(ValueError, match=message):
        check_card((adapter / "README.md").read_text().replace(*change), "the card")


def test_licences(adapter, place, tmp_path):
    assert (
        licence_of(ENTRIES["embedded/music"].path) == "apache-2.0"
        and licence_of(place / "base") == "cc-by-nc-sa-4.0"
    )
    config = json.loads((adapter / "config.json").read_text())
    for base, own, wanted in (
        (BASE, "mit", "cc-by-nc-sa-4.0"),  # what a folder says of itself cannot free it
        ("stable-audio-open-1.0", "mit", "stable-audio-community"),
        ("tango-full", "mit", "unknown"),
        ("someone/model", "mit", "mit"),
        ("someone/model", None, "unknown"),
        (None, "mit", "mit"),
        (None, None, ""),
    ):
        changed = {key: value for key, value in config.items() if key != "licence"} | (
            {"licence": own} if own else {}
        )
        changed["base"] = {**config["base"], "name": base}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        assert licence_of(tmp_path) == wanted, (base, own)
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"licence": "stable-audio-community"})
    )
    found = header(card_for(tmp_path))
    assert found["license"] == "other" and found["license_name"] == "stable-audio-community"


def test_verify_says_what_it_checked_and_refuses_what_is_wrong(adapter, place, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    facts = "\n".join(verify_artifact(folder, zoo.load))
    for wanted in (
        "adapter lora, format 1",
        "2 of them as config.json promises",
        "fits its base tiny-base",
        "card: valid",
    ):
        assert wanted in facts
    assert facts.endswith("licence cc-by-nc-sa-4.0")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: cc-by-nc-sa-4.0", "license: mit"))
    with pytest.raises(ValueError, match=r"license.* mit.*cc-by-nc-sa-4\.0"):
        verify_artifact(folder, zoo.load)
    (folder / "README.md").unlink()
    assert "card: none (README.md is written by an export" in "\n".join(
        verify_artifact(folder, zoo.load)
    )
    (folder / "README.md").write_text(card)
    (folder / "train.py").write_text("print()")
    with pytest.raises(ValueError, match=r"train\.py"):
        verify_artifact(folder, zoo.load)
    (folder / "train.py").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sha256": {}}))
    with pytest.raises(ValueError, match=r"hash.*adapter_model\.safetensors"):
        verify_artifact(folder, zoo.load)
    (folder / "config.json").write_text(
        json.dumps(config | {"base": {**config["base"], "name": "someone/else"}})
    )
    assert "not tried on its base, someone/else" in "\n".join(verify_artifact(folder, zoo.load))
    other = tmp_path / "other"
    save_artifact(
        other,
        kind="backbone",
        architecture="tiny_audio",
        arguments=SMALL,
        module=random_model(1),
        licence="mit",
    )
    (other / "README.md").write_text(card_for(other))
    assert "loads strictly" in "\n".join(verify_artifact(other, zoo.load))


def test_the_embedded_family_is_whole():
    for name in EMBEDDED:
        facts = "\n".join(verify_artifact(ENTRIES[name].path, zoo.load))
        assert "loads strictly" in facts and "licence apache-2.0" in facts


def test_a_card_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    """A base in a folder, prompts from a folder, a reward's folder with a blank."""
    base = "/home/somebody/models/my base"
    facts = {
        "base": {"name": base, "licence": "mit", "files": {}},
        "training": {
            "algorithm": "DDPO",
            "reward": "C:\\Users\\somebody\\judge",
            "prompts": {
                "sources": ["/home/somebody/sounds", "~/somebody/x"],
                "template": "see /home/somebody/t",
            },
        },
    }
    save_artifact(
        tmp_path / "model",
        module=zoo.backbones.tiny.TinyAudio(**SMALL),
        kind="backbone",
        architecture="tiny_audio",
        arguments=SMALL,
        **facts,
    )
    card = card_for(tmp_path / "model")
    assert "somebody" not in card
    assert "path/to/my base" in card and "path/to/judge" in card and "path/to/sounds" in card


def test_only_whole_paths_count_as_paths() -> None:
    texts = ["and/or", "3/4", "https://host/a/b", "embedded/music", "a / b", "[UNK]"]
    assert portable(texts) == texts
    assert portable("/a/b/c") == "path/to/c"
