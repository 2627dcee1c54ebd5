"""Rewards in worker threads: the same numbers and errors as in line, in bounded memory."""

import threading

import pytest
import torch
from toy_ddpo import module, recorded, trainer, weights
from toys import Given, Rounds, ToyBackbone, ToyReward, prompt_round

from lightning_modules.rl.reward_queue import WAITING, RewardError, RewardQueue
from lightning_modules.rl.rollouts import sample_and_score
from lightning_modules.run_folder import every_epoch
from zoo.diffusion import Sampler
from zoo.types import RewardOutput

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
PATIENCE_S = 120.0  # until a test that hangs fails


def scored(reward, workers, size=2, count=8, backbone=None, **changes):
    batch = prompt_round(count)
    settings = {
        "seed": 0,
        "sample_batch_size": size,
        "device": CPU,
        "keep": "wave",
        "reward_workers": workers,
        **changes,
    }
    return sample_and_score(backbone or ToyBackbone(), reward, Sampler(3, 2.0), batch, **settings)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reward")]


class Vectors(ToyReward):
    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        output = super().__call__(wave_BCN, sample_rate_hz, prompts)
        return RewardOutput(output.score_B, output.parts, {"wave": wave_BCN.flatten(1)})


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_numbers_do_not_depend_on_the_workers(workers):
    in_line = scored(Vectors(), 0)
    threaded = scored(Vectors(), workers)
    assert torch.equal(in_line.score_B, threaded.score_B) and torch.equal(
        in_line.wave_BCN, threaded.wave_BCN
    )
    assert torch.equal(in_line.parts["level"], threaded.parts["level"])
    assert torch.equal(in_line.vectors["wave"], in_line.wave_BCN.flatten(1))
    assert torch.equal(threaded.vectors["wave"], in_line.vectors["wave"])
    assert threaded.seconds_reward > 0 and not threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_training_ends_with_bitwise_the_same_adapter_also_when_resumed(tmp_path, workers):
    in_line = module({"sampler.batch_size": 2})
    threaded = module({"sampler.batch_size": 2, "scoring.workers": workers})
    recorded(in_line, epochs=4)
    run = trainer(2)
    run.fit(threaded, Rounds(8))
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module({"sampler.batch_size": 2, "scoring.workers": workers})
    trainer(4).fit(resumed, Rounds(8, start=2), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert all(
        torch.equal(value, weights(resumed)[name]) for name, value in weights(in_line).items()
    )
    assert in_line.tracker.state_dict() == resumed.tracker.state_dict()


class Modes(ToyReward):
    """Records what torch keeps per thread, and computes in the active precision."""

    def __init__(self) -> None:
        self.seen = set()

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        flags = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )
        self.seen.add((*flags, torch.get_autocast_dtype("cpu")))
        mixed = (
            wave_BCN[:, 0] @ torch.linspace(0.1, 1, wave_BCN.shape[-1])[:, None]
        )  # bfloat16 under autocast
        return RewardOutput(
            mixed[:, 0].float(),
            {"half": torch.full((len(prompts),), float(mixed.dtype == torch.bfloat16))},
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reward_does_not_depend_on_its_thread(workers):
    ddpo = module({"scoring.workers": workers}, reward=Modes())
    run = trainer(1, precision="bf16-mixed")
    run.fit(ddpo, Rounds(8))
    assert run.callback_metrics["reward_part/half"] == 1
    assert ddpo.reward.seen == {(False, False, True, torch.bfloat16)}
    ddpo.reward.seen.clear()
    run.validate(ddpo, Given(prompt_round(8)), verbose=False)
    assert ddpo.reward.seen == {(False, True, True, torch.bfloat16)}
    ddpo.reward.seen.clear()
    scored(ddpo.reward, workers)
    assert {seen[:3] for seen in ddpo.reward.seen} == {(False, False, False)}


class NextWave(ToyReward):
    """Answers, except to the last wave, only after another wave has been decoded."""

    def __init__(self, waves: int) -> None:
        self.decoded = threading.Semaphore(0)
        self.calls = 0
        self.waves = waves

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        self.calls += 1
        if self.calls < self.waves:
            assert self.decoded.acquire(timeout=PATIENCE_S)  # each wave after the first gives one
        return super().__call__(wave_BCN, sample_rate_hz, prompts)


def test_sampling_goes_on_while_the_reward_works():
    reward = NextWave(4)
    backbone = ToyBackbone()
    decode = backbone.decode
    count = []

    def decoded(latent):
        count.append(1)
        if len(count) > 1:
            reward.decoded.release()
        return decode(latent)

    backbone.decode = decoded
    assert torch.equal(scored(reward, 1, backbone=backbone).score_B, scored(ToyReward(), 0).score_B)


@pytest.mark.parametrize("workers", [1, 2])
def test_few_waves_exist_at_a_time(workers):
    """With a blocked reward, ``workers + WAITING`` waves are accepted; the next ``put`` waits."""
    gate, full = threading.Event(), threading.Event()

    class Held(ToyReward):
        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            assert gate.wait(PATIENCE_S)
            return super().__call__(wave_BCN, sample_rate_hz, prompts)

    batch = prompt_round(2)
    accepted = []

    def feed() -> None:
        with RewardQueue(Held(), 8, CPU, workers) as queue:
            for number in range(workers + WAITING + 3):
                queue.put(torch.full((2, 1, 8), float(number)), batch.prompts)
                accepted.append(number)
                if len(accepted) == workers + WAITING:
                    full.set()
            outputs.extend(queue.collect())

    outputs: list[RewardOutput] = []
    feeder = threading.Thread(target=feed)
    feeder.start()
    assert full.wait(PATIENCE_S)
    feeder.join(timeout=0.2)
    assert feeder.is_alive() and len(accepted) == workers + WAITING
    gate.set()
    feeder.join(PATIENCE_S)
    assert [output.parts["level"][0].item() for output in outputs] == list(
        range(workers + WAITING + 3)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reward_that_fails_in_a_later_round_loses_only_that_round(tmp_path, workers):
    """Fixed and resumed from the last checkpoint, the run ends as if nothing had happened."""

    class FailsInThirdRound(ToyReward):
        calls = 0

        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            self.calls += 1
            if self.calls == 10:  # 4 waves a round
                raise OSError("the server is gone")
            return super().__call__(wave_BCN, sample_rate_hz, prompts)

    def made(reward):
        return module({"sampler.batch_size": 2, "scoring.workers": workers}, reward=reward)

    def run(epochs):
        return trainer(epochs, callbacks=[every_epoch(tmp_path)], enable_checkpointing=True)

    whole = made(ToyReward())
    trainer(4).fit(whole, Rounds(8))
    with pytest.raises(RewardError, match="FailsInThirdRound.*OSError: the server is gone"):
        run(4).fit(made(FailsInThirdRound()), Rounds(8))
    mended = made(ToyReward())
    last = tmp_path / "checkpoints" / "last.ckpt"
    run(4).fit(mended, Rounds(8, start=2), ckpt_path=last, weights_only=True)
    assert all(torch.equal(value, weights(mended)[name]) for name, value in weights(whole).items())
    assert whole.tracker.state_dict() == mended.tracker.state_dict()


class Faulty(ToyReward):
    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        if any(prompt.id == f"p{number}" for prompt in prompts for number in self.bad):
            raise RuntimeError(f"no model for {prompts[0].id}")
        return super().__call__(wave_BCN, sample_rate_hz, prompts)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("bad", [(0,), (2,), (7,), (3, 5, 6)])
def test_the_earliest_error_surfaces_whatever_the_workers(workers, bad):
    batch = prompt_round(8, repeats=1)
    message = f"the reward Faulty raised RuntimeError: no model for p{bad[0]} .*resume=true"
    with pytest.raises(RewardError, match=message) as caught:
        sample_and_score(
            ToyBackbone(),
            Faulty(*bad),
            Sampler(2),
            batch,
            seed=0,
            sample_batch_size=1,
            device=CPU,
            reward_workers=workers,
        )
    assert isinstance(caught.value.__cause__, RuntimeError) and not threads()
    notes = getattr(caught.value, "__notes__", [])
    assert all("and another wave: the reward Faulty raised" in note for note in notes) and len(
        notes
    ) < len(bad)


def test_no_error_is_lost_when_several_waves_fail_at_once():
    together = threading.Barrier(3, timeout=PATIENCE_S)

    class AllAtOnce(ToyReward):
        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            together.wait()
            raise RuntimeError(f"broken at {prompts[0].id}")

    with pytest.raises(RewardError, match="broken at p0") as caught:
        sample_and_score(
            ToyBackbone(),
            AllAtOnce(),
            Sampler(2),
            prompt_round(3, repeats=1),
            seed=0,
            sample_batch_size=1,
            device=CPU,
            reward_workers=3,
        )
    assert [note.split("broken at ")[1][:2] for note in caught.value.__notes__] == ["p1", "p2"]


def test_when_sampling_fails_its_error_names_the_rewards_too_and_no_thread_is_left():
    backbone = ToyBackbone()
    asked = threading.Event()

    class Broken(ToyReward):
        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            asked.set()
            raise RuntimeError("no such file")

    decode = backbone.decode
    count = []

    def fails_later(latent):
        count.append(1)
        if len(count) == 2:
            assert asked.wait(PATIENCE_S)
            raise MemoryError("out of memory")
        return decode(latent)

    backbone.decode = fails_later
    with pytest.raises(MemoryError, match="out of memory") as caught:
        scored(Broken(), 1, backbone=backbone)
    assert (
        "meanwhile, the reward Broken raised RuntimeError: no such file"
        in caught.value.__notes__[0]
        and not threads()
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_answer_of_a_thread_stops_the_run_and_nothing_is_learned(workers):
    class Answer(ToyReward):
        def __init__(self, **changes) -> None:
            self.changes = changes

        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            return RewardOutput(**{"score_B": wave_BCN.mean(dim=(1, 2)), **self.changes})

    for reward, message in (
        (Answer(score_B=torch.zeros(1)), r"score_B needs \(2,\), got shape \(1,\)"),
        (Answer(score_B=[0.0, 0.0]), r"score_B needs \(2,\), got list"),
        (Answer(score_B=torch.zeros(2) + 0j), r"score_B needs \(2,\), got torch.complex64"),
        (Answer(vectors={"x": torch.zeros(2)}), r"vectors\['x'\] needs \(2, D\)"),
        (Answer(parts=None), "parts by name .* got NoneType"),
        (Answer(vectors=[1.0]), "vectors by name .* got list"),
    ):
        ddpo = module({"scoring.workers": workers, "sampler.batch_size": 2}, reward=reward)
        before = weights(ddpo)
        with pytest.raises(RewardError, match=message):
            trainer(1).fit(ddpo, Rounds(8))
        assert all(torch.equal(before[name], value) for name, value in weights(ddpo).items())


def test_progress_and_seconds_are_reported():
    reports = []
    samples = scored(
        ToyReward(), 2, report=lambda phase, done, total: reports.append((phase, done, total))
    )
    rewards = [done for phase, done, total in reports if phase == "reward" and total == 8]
    assert rewards == sorted(rewards) and rewards[-1] == 8
    assert samples.seconds_reward_waited >= 0 < samples.seconds_sampling
    metrics = recorded(module({"scoring.workers": 1})).rounds[0]
    assert (
        metrics["seconds/reward_waited"] >= 0
        and "seconds/reward_waited" not in recorded(module()).rounds[0]
    )
    with pytest.raises(ValueError, match="invalid workers -1"):
        module({"scoring.workers": -1})


class FailsOn(Vectors):
    """Raises for the calls (from 0) in ``failing``."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.calls = 0

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        self.calls += 1
        if self.calls - 1 in self.failing:
            raise ConnectionError("the server is away")
        return super().__call__(wave_BCN, sample_rate_hz, prompts)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_whose_reward_raised_can_be_dropped(workers, caplog):
    whole = scored(Vectors(), 0)
    some = scored(FailsOn(0, 2), workers, drop_failed=True)
    kept = [2, 3, 6, 7]
    assert some.score_B.isfinite().tolist() == [i in kept for i in range(8)]
    assert torch.equal(some.score_B[kept], whole.score_B[kept])
    assert torch.equal(some.parts["level"][kept], whole.parts["level"][kept])
    assert torch.equal(some.vectors["wave"][kept], whole.vectors["wave"][kept])
    assert "the server is away" in caplog.text
    with pytest.raises(RewardError, match="the server is away"):
        scored(FailsOn(1), workers)


def test_a_wrong_shape_stops_also_when_failures_are_dropped():
    class Short(ToyReward):
        def __call__(self, wave_BCN, sample_rate_hz, prompts):
            return RewardOutput(torch.zeros(1))

    with pytest.raises(RewardError, match="shape"):
        scored(Short(), 0, drop_failed=True)


def test_a_run_drops_what_the_reward_could_not_score_and_counts_it():
    rounds = recorded(module({"scoring.on_bad_reward": "drop"}, reward=FailsOn(1)), epochs=2).rounds
    assert [metrics["dropped_samples"] for metrics in rounds] == [4, 0]
