"""Tokens and passwords stay out of messages, logs, run configurations, cards and uploads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from hub_server import WRITER, HubServer, connect
from toy_artifacts import CARD, contents, model_folder
from toy_run import config as toy_config

from lightning_modules import run, run_folder
from lightning_modules.report import write_report
from lightning_modules.rl.reward_queue import RewardError, score
from zoo import secrets
from zoo.commands.zoo import main
from zoo.configuration import read_configuration
from zoo.errors import UserError, describe, reported
from zoo.hub.pull import pull, push
from zoo.secrets import MASK, is_secret_key, masked, without_secrets
from zoo.types import Prompt

OTHER = "hf_" + "Zz9" * 10


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {OTHER} sent", f"Bearer {MASK} sent"),
        ("key sk-proj-abcdefghijklmnopqrst.", f"key {MASK}."),
        ("ghp_abcdefghijklmnopqrstuvwx", MASK),
        (
            "http://me:pass1234@proxy:80/x and http://host:80/a@b",
            f"http://me:{MASK}@proxy:80/x and http://host:80/a@b",
        ),
        ("hf_hub_download of tokens_BLD sk-learn", "hf_hub_download of tokens_BLD sk-learn"),
        ("correct horse, battery", f"{MASK}, battery"),
        ("the word abc stays", "the word abc stays"),
        ("GET https://h/x?token=abcde&a=1#q", f"GET https://h/x?token={MASK}&a=1#q"),
        (
            "https://h/x?X-Amz-Signature=ff00&key=kk",
            f"https://h/x?X-Amz-Signature={MASK}&key={MASK}",
        ),
        ("clone https://ghtoken12@github.com/x", f"clone https://{MASK}@github.com/x"),
        ("https://me:p/a@ss@host/y", f"https://me:{MASK}@host/y"),
        ("401 for Bearer abcdef", f"401 for Bearer {MASK}"),
        ("Bearer authentication is wanted", "Bearer authentication is wanted"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: {MASK}"),
        ("{'api_key': 'abc d', 'n': 1}", f"{{'api_key': '{MASK}', 'n': 1}}"),
        ("llm={api_key: foo, x: 1}", f"llm={{api_key: {MASK}, x: 1}}"),
        ("AWS_SECRET_ACCESS_KEY=ab/cd+e", f"AWS_SECRET_ACCESS_KEY={MASK}"),
        ("invalid token: expected a word", "invalid token: expected a word"),
        ("text_tokens: 77 max_tokens=5 seed=1", "text_tokens: 77 max_tokens=5 seed=1"),
    ],
)
def test_what_is_masked(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LLM_API_KEY", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("key", "is_secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("MY_SECRET_THING", True),
        ("DB_PASS", True),
        ("apiKey", True),
        ("module.llm.api_key", True),
        ("client-secret", True),
        ("hf_token", True),
        ("private_key", True),
        ("label_key", False),
        ("tokens_BLD", False),
        ("PWD", False),
        ("DB_PWD", True),
        ("passes", False),
        ("author", False),
    ],
)
def test_which_keys_hold_secrets(key: str, is_secret: bool) -> None:
    assert is_secret_key(key) == is_secret


def test_the_value_of_a_masked_key_is_masked_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First on the command line, then in files, messages and a reward's exception."""
    words = ["trainer.x={api_key: zap!zap}", "data.password=hunt3r", "data.note=with zap!zap"]
    settings = read_configuration([toy_config(tmp_path)], words)
    run_folder.write_config(tmp_path / "run", settings.to_dict(), ["fit.py", *words], None)
    files = [tmp_path / "run/config.yaml", write_report(tmp_path / "run")]

    def reward(*_: object) -> None:
        raise RuntimeError("login with zap!zap as hunt3r failed\x1b[2J")

    with pytest.raises(RewardError) as caught:
        score(reward, torch.zeros(1, 1, 8), 16_000, [Prompt("p", "text")])

    def fails(_: object) -> None:
        raise UserError("zap!zap and hunt3r")

    assert reported(fails, []) == 2
    seen = [path.read_text() for path in files] + [str(caught.value), capsys.readouterr().err]
    for text in seen:
        assert MASK in text
        assert "zap!zap" not in text and "hunt3r" not in text and "\x1b" not in text


def test_a_number_below_a_secret_key_is_masked_and_a_count_is_not() -> None:
    config = {"password": 123456, "note": "123456", "max_tokens": 654321, "n": "654321"}
    shown = {"password": MASK, "note": MASK, "max_tokens": 654321, "n": "654321"}
    assert masked(config) == shown


def test_a_report_of_an_older_runs_configuration_holds_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("module:\n  api_key: not-masked-then\n")
    assert "not-masked-then" not in write_report(tmp_path).read_text()


def test_a_message_holds_no_control_characters_and_is_cut() -> None:
    shown = describe(ValueError("a\x1b[2Jb\u202ec\n" + "x" * 10**6))
    assert "\x1b" not in shown and "\u202e" not in shown and "\n" in shown and len(shown) < 10_000


def test_run_configurations_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not under a secret key, another key, on the command line, or in a second start."""
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    words = [f"data.token={OTHER}", "provenance=[an-unusual-token]"]
    settings = read_configuration([toy_config(tmp_path)], words[:1])
    settings.module["kind"] = "a"
    settings.data["note"] = f"pulled with {OTHER} and an-unusual-token"
    run_folder.write_config(
        tmp_path / "run", settings.to_dict(), ["fit.py", *words, f"name={OTHER}"], None
    )
    run_folder.write_config(tmp_path / "run", settings.to_dict(), ["fit.py", *words], None)
    text = (tmp_path / "run/config.yaml").read_text()
    assert OTHER not in text
    assert "an-unusual-token" not in text
    assert text.count(MASK) >= 6
    assert run_folder.changed_settings(tmp_path / "run", settings.to_dict()) == []


def test_a_trained_run_holds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of a run folder, whatever wrote it."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    run.fit(
        read_configuration([toy_config(tmp_path)], [f"data.token={OTHER}"]),
        ["fit.py", f"data.token={OTHER}"],
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.csv", "last.ckpt"} <= {path.name for path in files}
    for path in files:
        assert not {secret for secret in (OTHER, WRITER) if secret.encode() in path.read_bytes()}, (
            path
        )
    shown = capsys.readouterr()
    assert OTHER not in shown.out + shown.err


@pytest.mark.parametrize(
    "case",
    ["missing", "private", "gated", "wrong hash", "wrong token", "nobody there", "refused push"],
)
def test_failures_show_no_secret(
    case: str,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the message, the traceback with all causes, every log line, and the printed text."""
    model = model_folder(tmp_path / "made/model")
    token = OTHER if case == "wrong token" else WRITER
    connect(monkeypatch, hub, tmp_path / "home", token)
    monkeypatch.chdir(tmp_path)
    owner = "other" if case == "private" else "tester"
    if case != "missing":
        hub.put(f"{owner}/model", contents(model), private=case == "private", gated=case == "gated")
    if case == "wrong hash":
        hub.corrupt((model / "config.json").read_bytes())
    if case == "nobody there":
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://me:pass1234@127.0.0.1:9")
    logging.getLogger("huggingface_hub").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    words = (
        ["push", str(model), "other/model", "--yes"]
        if case == "refused push"
        else ["pull", f"{owner}/model", "--accept-licence"]
    )
    assert reported(main, words) == 2
    shown = capsys.readouterr()
    assert "error: " in shown.err
    with pytest.raises((ValueError, OSError)) as caught:
        main(words)
    trace = "".join(traceback.format_exception(caught.value))
    for secret in (WRITER, OTHER):
        assert secret not in shown.out + shown.err + caplog.text + trace
    assert "pass1234" not in shown.out + shown.err
    assert len(caplog.records) > 0


@pytest.mark.parametrize("error", ["UserError", "RuntimeError"])
def test_tracebacks_of_commands_show_none(error: str, tmp_path: Path) -> None:
    """No secret in a traceback: of a mistake (on request) or a bug, and of an error before it."""
    script = tmp_path / "command.py"
    script.write_text(f"""
import sys
from zoo.errors import UserError, reported
from zoo.secrets import remember

def main(argv):
    remember("zap!zap")
    try:
        raise KeyError("zap!zap in " + argv[0])
    except KeyError as error:
        raise {error}("login as zap!zap") from error

sys.exit(reported(main))
""")
    command = [sys.executable, str(script), OTHER]
    environment = {**os.environ, "ATTUNE_TRACEBACK": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "Traceback" in ended.stderr and f"{error}: login as {MASK}" in ended.stderr
    assert "zap!zap in" not in ended.stderr and OTHER not in ended.stderr


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_card_or_a_config_with_a_token_is_not_sent(
    name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    model = model_folder(
        tmp_path / "made/model", **({"note": OTHER} if name == "config.json" else {})
    )
    if name == "README.md":
        (model / name).write_text(f"{CARD}\nos.environ['HF_TOKEN'] = {OTHER!r}\n")
    with pytest.raises(
        ValueError, match=rf"{name} in .* holds what looks like an access token"
    ) as caught:
        push(model, "tester/model", yes=True)
    assert OTHER not in str(caught.value)
    assert hub.requests == []


def test_no_token_is_written_by_a_pull(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home", token=None)
    monkeypatch.chdir(tmp_path)
    hub.put("tester/model", contents(model_folder(tmp_path / "made/model")), private=True)
    pull("tester/model", token=WRITER)
    assert any(request.token == WRITER for request in hub.requests)
    assert [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and WRITER.encode() in path.read_bytes()
    ] == []
