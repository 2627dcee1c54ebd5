"""Progress of a run: lines in a file, labelled bars in a terminal, and a summary at the end."""

import io
import logging
import warnings

import pytest
from rich.console import Console
from test_run_folder import run
from toy_ddpo import module, trainer
from toy_preferences import small_reward
from toys import Given, Rounds, prompt_round

from lightning_modules import progress
from lightning_modules.preference_model import Preference
from lightning_modules.progress import RoundProgress, quieten_lightning
from lightning_modules.run_summary import run_summary
from zoo.rewards.mood import UNITS


def shown(terminal: bool, epochs: int = 2, **changes):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    display = RoundProgress(console)
    settings = {
        "max_epochs": epochs,
        "num_sanity_val_steps": -1,
        "limit_train_batches": 1,
        **changes,
    }
    run = trainer(callbacks=[display], **settings)
    run.fit(module(), Rounds(8), Given(prompt_round(4, repeats=1)))
    return file.getvalue(), display


def test_a_file_gets_one_line_per_round_and_evaluation():
    lines = shown(terminal=False)[0].splitlines()
    kinds = [" ".join(line.split()[:2]) for line in lines]
    held_out = "held-out prompts"
    assert kinds == [held_out, held_out, "round 1/2", held_out, "round 2/2", held_out]
    assert lines[0] == "held-out prompts before training ..."  # at once
    assert "before training" in lines[1] and "after round 1" in lines[3]
    assert all("reward" in line for line in lines[1:])
    assert "left" in lines[2]
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "first"),
    [({"max_epochs": -1, "max_steps": 2}, "round 1 "), ({"max_epochs": 1}, "round 1/1 ")],
)
def test_a_total_that_is_not_known_is_not_shown(changes, first):
    lines = shown(terminal=False, num_sanity_val_steps=0, **changes)[0].splitlines()
    assert lines[0].startswith(first) and not any("/-" in line for line in lines)


def test_a_long_evaluation_and_a_long_round_have_lines_between(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)  # as if each step took half a minute
    lines = shown(terminal=False, epochs=1)[0].splitlines()
    first_round = next(i for i, line in enumerate(lines) if line.startswith("round 1"))
    assert any(line.startswith("  held-out rollout ") for line in lines[:first_round])
    for phase in ("rollout", "reward", "update"):
        assert any(line.startswith(f"  {phase} ") for line in lines[:first_round])
    assert all(int(done) <= int(total) for done, total in _counts(lines))


def _counts(lines):
    return [line.split()[-1].split("/") for line in lines if line.startswith("  ")]


def test_bars_label_evaluations_and_start_anew_in_each_round(monkeypatch):
    seen = []
    report = RoundProgress._report

    def watched(self, phase, done, total):
        report(self, phase, done, total)
        name = f"held-out {phase}" if self._is_evaluating else phase
        task = self._bars.tasks[self._tasks[name]]
        seen.append((name, task.completed, task.total, task.elapsed, task.visible))

    monkeypatch.setattr(RoundProgress, "_report", watched)
    shown(terminal=True)
    names = {name for name, *_ in seen}
    assert {"rollout", "reward", "update", "held-out rollout", "held-out reward"} <= names
    assert all(0 <= done <= total for _, done, total, *_ in seen)
    updates = [(done, elapsed) for name, done, _, elapsed, _ in seen if name == "update"]
    starts = [i for i, (done, _) in enumerate(updates) if i and done <= updates[i - 1][0]]
    assert len(starts) == 1  # the second round
    assert all(visible for *_, visible in seen)


def test_lightnings_advertisements_are_dropped(caplog):
    quieten_lightning()
    quieten_lightning()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    assert len([one for one in logger.filters if type(one).__name__ == "_Filter"]) == 1
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("Tip: For seamless cloud uploads try installing [litmodels]")
        logger.info("TPU available: False, using: 0 TPU cores")
        logger.info("something that matters")
    assert [record.message for record in caplog.records] == ["something that matters"]


def test_warnings_about_intended_states_are_dropped():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quieten_lightning()
        warnings.warn("Found 487 module(s) in eval mode at the start of training. This may")
        warnings.warn("something else")
    assert [str(one.message) for one in caught] == ["something else"]


@pytest.mark.long
def test_the_end_of_a_run_says_what_it_made(tmp_path):
    _, ddpo = run(tmp_path, 2, sanity=-1)
    ddpo.reward.unit = UNITS["value"]
    lines = run_summary(tmp_path, ddpo)
    first = lines[0]
    assert first.startswith("held-out reward:") and "before" in first and "0 is best" in first
    assert [line.split(":")[0] for line in lines[1:]] == ["report", "hear", "export"]
    assert str(tmp_path / "report.html") in lines[1]
    assert "tools/generate.py" in lines[2] and "tools/zoo.py export" in lines[3]


@pytest.mark.long
def test_without_an_earlier_evaluation_it_describes_its_samples(tmp_path):
    _, ddpo = run(tmp_path, 1)
    assert run_summary(tmp_path, ddpo)[0].startswith("reward of the samples")
    assert run_summary(tmp_path / "nothing", ddpo) == []


def test_a_run_that_trained_a_reward_says_how_to_score_with_it(tmp_path):
    preference = small_reward()
    Preference(preference).export(tmp_path)
    first, second = run_summary(tmp_path, None)
    assert first.startswith("score:") and f"tools/annotate.py FOLDER --reward {tmp_path}" in first
    assert second.startswith("export:")
