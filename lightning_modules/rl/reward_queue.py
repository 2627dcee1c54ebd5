"""Scores the waves of a round in line or in worker threads, with the same results.

Worker threads help where reward and sampling use different machinery: a reward on the CPU beside
sampling on a GPU, one that waits for a server, or two that each use a part of the cores. On CUDA a
worker uses the stream of sampling, so that its kernels come after those that made the wave and no
tensor changes streams: what overlaps is the reward's work outside the GPU.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from zoo.errors import UserError, for_screen
from zoo.secrets import without_secrets
from zoo.types import Prompt, Reward, RewardOutput

log = logging.getLogger(__name__)

WAITING = 2  # waves that may wait while others are scored: it bounds the memory


class RewardError(UserError):
    """A reward raised, or returned something that is not one score per sample."""


class RewardRaised(RewardError):
    """A reward raised an exception of its own."""


class Stopwatch:
    """Sums wall-clock seconds of ``with`` blocks; waits for the accelerator at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def score(
    reward: Reward, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
) -> RewardOutput:
    """The reward's answer, checked, float32 on the CPU.

    Where gradients are enabled and the reward is differentiable, they flow from the answer to the
    wave. Raises ``RewardError`` naming the reward and what was wrong.
    """
    name = type(reward).__name__
    texts = ", ".join(repr(prompt.text) for prompt in prompts[:3])
    try:
        output = reward(wave_BCN, sample_rate_hz, prompts)
    except RewardError:  # of a reward that this one asked: its message names it
        raise
    except Exception as error:
        # A service may have put its key into the message.
        message = for_screen(without_secrets(str(error)), 2000)
        raise RewardRaised(
            f"the reward {name} raised {type(error).__name__}: {message} (on {len(prompts)} samples"
            f" of {texts}, ...); nothing since the last checkpoint is kept; fix the reward, or set"
            " on_bad_reward=drop to leave such samples out, then continue with resume=true"
        ) from error
    check_answer(output, len(prompts), f"the reward {name} must return")
    if not reward.differentiable:
        output = _detached(output)
    return RewardOutput(
        output.score_B.float().cpu(), _on_cpu(output.parts), _on_cpu(output.vectors)
    )


def check_answer(output: RewardOutput, count: int, who: str) -> None:
    """Raises ``RewardError`` unless ``output`` has one value per sample in every field.

    The score and each part need one real number per sample, each of ``vectors`` one vector. The
    message begins with ``who``.
    """
    if not isinstance(output, RewardOutput):
        raise RewardError(f"{who} a RewardOutput, got {type(output).__name__}")
    for kind in ("parts", "vectors"):
        if not isinstance(getattr(output, kind), Mapping):
            raise RewardError(
                f"{who} {kind} by name (a dict, {{}} for none), got"
                f" {type(getattr(output, kind)).__name__}"
            )
    numbers = {
        "score_B": output.score_B,
        **{f"parts[{name!r}]": part for name, part in output.parts.items()},
    }
    vectors = {f"vectors[{name!r}]": vector for name, vector in output.vectors.items()}
    for ndim, named, what, shape in (
        (1, numbers, "one number", f"({count},)"),
        (2, vectors, "a vector", f"({count}, D)"),
    ):
        for name, value in named.items():
            if not isinstance(value, Tensor) or value.is_complex():
                got = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            elif value.ndim != ndim or len(value) != count:
                got = f"shape {tuple(value.shape)}"
            else:
                continue
            raise RewardError(f"{who} {what} a sample: {name} needs {shape}, got {got}")


def _detached(output: RewardOutput) -> RewardOutput:
    parts, vectors = (
        {name: value.detach() for name, value in named.items()}
        for named in (output.parts, output.vectors)
    )
    return RewardOutput(output.score_B.detach(), parts, vectors)


def _on_cpu(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float().cpu() for name, value in named.items()}


def _filled(outputs: Sequence[RewardOutput | None], sizes: Sequence[int]) -> list[RewardOutput]:
    """NaN for the samples of calls that failed, with the parts and vectors of the others."""
    like = next((output for output in outputs if output is not None), RewardOutput(torch.empty(0)))

    def nothing(count: int) -> RewardOutput:
        parts = {name: torch.full((count,), torch.nan) for name in like.parts}
        vectors = {
            name: torch.full((count, vector.shape[1]), torch.nan)
            for name, vector in like.vectors.items()
        }
        return RewardOutput(torch.full((count,), torch.nan), parts, vectors)

    pairs = zip(outputs, sizes, strict=True)
    return [nothing(size) if output is None else output for output, size in pairs]


@dataclass(frozen=True)
class _Modes:
    """The settings that torch keeps per thread, copied from the thread that samples.

    So a reward does not depend on its thread.
    """

    is_inference: bool
    has_grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    stream: torch.cuda.Stream | None

    @staticmethod
    def of_this_thread(device: torch.device) -> _Modes:
        kinds = sorted({"cpu", device.type})
        return _Modes(
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in kinds
            ),
            torch.cuda.current_stream(device) if device.type == "cuda" else None,
        )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))  # sets the thread's device too
            stack.enter_context(torch.inference_mode(self.is_inference))
            stack.enter_context(torch.set_grad_enabled(self.has_grad))
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield


class RewardQueue:
    """Takes waves with ``put`` and returns all rewards in order with ``collect``.

    It is a context manager.

    ``workers`` 0 scores inside ``put``. Otherwise so many threads score while ``put`` returns; when
    ``WAITING`` more waves than that are on hand it waits, so few waves exist at a time. The reward
    must then be safe to call from several threads at once (with 1 worker: from another thread
    than the one that made it).

    ``put`` and ``collect`` raise the ``RewardError`` of the earliest wave that failed, as scoring
    in line would; errors of further waves are its notes (``__notes__``). Leaving the context ends
    all threads: waves that wait are not scored any more. With ``drop_failed`` a call that raises is
    shown as a warning, and its samples have NaN scores; an answer of the wrong shape still
    stops. ``seconds``: spent in the reward, summed over threads; ``seconds_waited``: of the caller,
    in ``put`` and ``collect``.
    """

    def __init__(
        self,
        reward: Reward,
        sample_rate_hz: int,
        device: torch.device,
        workers: int = 0,
        report: Callable[[int], None] | None = None,
        drop_failed: bool = False,
    ) -> None:
        self._reward = reward
        self._rate = sample_rate_hz
        self._device = device
        self._drop_failed = drop_failed
        self._report = report or (lambda samples: None)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reward") if workers else None
        self._room = threading.BoundedSemaphore(workers + WAITING)
        self._waves: list[Future[tuple[RewardOutput | None, float]]] = []
        self._sizes: list[int] = []
        self.seconds = self.seconds_waited = 0.0

    def __enter__(self) -> RewardQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        if error is not None and not isinstance(
            error, RewardError
        ):  # sampling failed: say so, and what else did
            for other in self._failures():
                error.add_note(f"meanwhile, {other}")

    def put(self, wave_BCN: Tensor, prompts: Sequence[Prompt]) -> None:
        """Scores ``wave_BCN`` (B, C, N), now or soon; it must not be changed any more.

        Raises ``RewardError``.
        """
        self._sizes.append(len(prompts))
        if self._pool is None:
            future: Future[tuple[RewardOutput | None, float]] = Future()
            watch = Stopwatch(self._device)
            with watch():
                output = self._scored(wave_BCN, prompts)
            future.set_result((output, watch.seconds))
            self.seconds_waited += watch.seconds
        else:
            start = time.perf_counter()
            self._room.acquire()
            self.seconds_waited += time.perf_counter() - start
            self._stop_if_one_failed()
            future = self._pool.submit(
                self._work, wave_BCN, prompts, _Modes.of_this_thread(self._device)
            )
            future.add_done_callback(lambda _: self._room.release())
        self._waves.append(future)
        self._report(
            sum(size for size, wave in zip(self._sizes, self._waves, strict=True) if wave.done())
        )

    def collect(self) -> list[RewardOutput]:
        """Waits for what is left; the rewards of all waves in the order of ``put``.

        Raises ``RewardError``.
        """
        outputs: list[RewardOutput | None] = []
        for index, wave in enumerate(self._waves):
            start = time.perf_counter()
            try:
                output, seconds = wave.result()
            except BaseException:
                self._stop_if_one_failed()
                raise
            self.seconds_waited += time.perf_counter() - start
            self.seconds += seconds
            outputs.append(output)
            self._report(
                max(
                    sum(self._sizes[: index + 1]),
                    sum(s for s, w in zip(self._sizes, self._waves) if w.done()),
                )
            )
        return _filled(outputs, self._sizes)

    def _work(
        self, wave_BCN: Tensor, prompts: Sequence[Prompt], modes: _Modes
    ) -> tuple[RewardOutput | None, float]:
        with modes():
            start = time.perf_counter()
            output = self._scored(wave_BCN, prompts)  # on the CPU: the GPU has finished
            return output, time.perf_counter() - start

    def _scored(self, wave_BCN: Tensor, prompts: Sequence[Prompt]) -> RewardOutput | None:
        try:
            return score(self._reward, wave_BCN, self._rate, prompts)
        except RewardRaised as error:
            if not self._drop_failed:
                raise
            log.warning("%d samples are dropped: %s", len(prompts), error)
            return None

    def _failures(self) -> list[BaseException]:
        done = [wave for wave in self._waves if wave.done() and not wave.cancelled()]
        return [error for error in (wave.exception() for wave in done) if error is not None]

    def _stop_if_one_failed(self) -> None:
        """Ends the threads if one has failed.

        Threads take waves in order, so every earlier wave is done when they have ended.
        """
        if not self._failures():
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        first, *others = self._failures()
        for other in others:
            first.add_note(f"and another wave: {other}")
        raise first
