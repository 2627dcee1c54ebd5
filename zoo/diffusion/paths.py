"""Paths from noise to clean latents: ``x = alpha * clean + sigma * noise`` at a time.

Every path has

- ``prediction``: what its network puts out;
- ``times(steps)``: the sampling grid, noisy to clean, steps + 1 values;
- ``coefficients(time)``: alpha and sigma, float32;
- ``sample_times(uniform_B)``: times for training.

Grids of continuous times are float64, and coefficients are computed in float64 on the CPU: near
pure noise a float32 time cannot tell two alphas apart. All samplers start from unit Gaussian noise.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import UserError

PREDICTIONS = ("eps", "v", "velocity", "x0")
TRAINING_TIMES = ("uniform", "logit_normal")
SPACINGS = ("linear", "exponential")


def require_known(what: str, name: str, choices: Sequence[str]) -> str:
    """Returns ``name``. Raises ``UserError`` with all choices, unless it is one of them."""
    if name in choices:
        return name
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"{what} {name!r} is unknown, expected one of {', '.join(map(repr, choices))}{hint}"
    )


def exact(tensor: Tensor) -> Tensor:
    """A detached float64 copy on the CPU; some accelerators have no float64."""
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def _require_steps(steps: int) -> int:
    if int(steps) != steps or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, got {steps}")
    return int(steps)


def _require_unit_time(time: Tensor) -> Tensor:
    time = exact(time)
    if not bool(((time >= 0) & (time <= 1)).all()):
        raise UserError(
            f"a continuous time is in [0, 1] (0 clean, 1 noise), got {time.flatten().tolist()}"
        )
    return time


class VPDiscrete:
    """Variance-preserving path in whole steps (AudioLDM 2, Tango): alpha^2 = alphas_cumprod[t].

    sigma^2 = 1 - alpha^2.

    Grids use "leading" spacing: t = k * (count // steps) + ``steps_offset``. The time after the
    last is clamped to 0, so a final alpha of 1 is never used and, with an offset of 1, every step
    keeps some noise.

    Args:
        alphas_cumprod: one value per training step, usually 1000; float32, as in released
            schedulers.
        prediction: what the network puts out.
        steps_offset: see above.
        ends_clean: the time after the last is -1 instead, where alpha is 1 and no noise is left
            (DDPM sampling, as Tango's).
    """

    def __init__(
        self,
        alphas_cumprod: Sequence[float] | Tensor,
        prediction: str = "eps",
        steps_offset: int = 1,
        ends_clean: bool = False,
    ) -> None:
        self.alphas_cumprod = (
            torch.as_tensor(alphas_cumprod, dtype=torch.float32).detach().cpu().clone()
        )
        if self.alphas_cumprod.ndim != 1 or not bool(
            ((self.alphas_cumprod > 0) & (self.alphas_cumprod < 1)).all()
        ):
            raise UserError(
                "alphas_cumprod must be a flat list of numbers between 0 and 1 (both excluded)"
            )
        self.prediction = require_known("prediction", prediction, PREDICTIONS)
        self.steps_offset = int(steps_offset)
        self._last_time = -1 if ends_clean else 0

    @classmethod
    def from_betas(
        cls,
        beta_start: float,
        beta_end: float,
        prediction: str = "eps",
        count: int = 1000,
        steps_offset: int = 1,
        ends_clean: bool = False,
    ) -> VPDiscrete:
        """The "scaled_linear" schedule: sqrt(beta) is linear from start to end, in float32.

        Released networks were trained with float32.

        Args:
            beta_start, beta_end: of the first and the last training step.
            count: training steps.
            prediction, steps_offset, ends_clean: see ``VPDiscrete``.
        """
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float32) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0), prediction, steps_offset, ends_clean)

    def __repr__(self) -> str:
        return (
            f"VPDiscrete({len(self.alphas_cumprod)} steps, prediction={self.prediction!r},"
            f" steps_offset={self.steps_offset})"
        )

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) long, descending, the last 0 or -1.

        Raises ``UserError`` when the grid does not fit into the training steps.
        """
        steps = _require_steps(steps)
        count = len(self.alphas_cumprod)
        stride = count // steps
        if stride < 1 or (steps - 1) * stride + self.steps_offset > count - 1:
            raise UserError(
                f"{steps} sampling steps do not fit into {count} training steps with steps_offset"
                f" {self.steps_offset}; use fewer"
            )
        grid = torch.arange(steps - 1, -1, -1) * stride + self.steps_offset
        return torch.cat([grid, (grid[-1:] - stride).clamp(min=self._last_time)])

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), float32, shaped like ``time`` (whole numbers).

        Raises ``UserError`` outside the training steps.
        """
        index = exact(time)
        lowest = self._last_time
        highest = len(self.alphas_cumprod) - 1
        if bool((index != index.round()).any()) or bool(
            ((index < lowest) | (index > highest)).any()
        ):
            raise UserError(
                f"a time of this path is a whole number in [{lowest}, {highest}], got"
                f" {index.flatten().tolist()}"
            )
        alpha_squared = self.alphas_cumprod.double()[index.long().clamp(min=0)]
        alpha_squared = torch.where(index < 0, torch.ones_like(alpha_squared), alpha_squared)
        return alpha_squared.sqrt().float().to(time.device), (1 - alpha_squared).sqrt().float().to(
            time.device
        )

    def sample_times(self, uniform_B: Tensor) -> Tensor:
        """Training times, long; every step is equally likely for ``uniform_B`` in [0, 1)."""
        count = len(self.alphas_cumprod)
        return (exact(uniform_B) * count).long().clamp(max=count - 1).to(uniform_B.device)


class VPCosine:
    """Variance-preserving path by angle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Stable Audio uses it.

    t is in [0, 1]; 1 is noise.

    Args:
        prediction: what the network puts out.
        spacing: "linear": t goes from 1 to 0 in equal parts. "exponential": Stable Audio Open's
            grid, sigma / alpha from ``sigma_max`` to ``sigma_min`` in equal ratios, then 0; t = 2
            atan(sigma / alpha) / pi.
        sigma_min, sigma_max: of the exponential grid.
    """

    def __init__(
        self,
        prediction: str = "v",
        spacing: str = "linear",
        sigma_min: float = 0.3,
        sigma_max: float = 500.0,
    ) -> None:
        self.prediction = require_known("prediction", prediction, PREDICTIONS)
        self.spacing = require_known("spacing", spacing, SPACINGS)
        if not 0 < sigma_min < sigma_max:
            raise UserError(f"expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    def __repr__(self) -> str:
        return f"VPCosine(prediction={self.prediction!r}, spacing={self.spacing!r})"

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float64, descending, the last 0."""
        steps = _require_steps(steps)
        if self.spacing == "linear":
            return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        log_sigmas = torch.linspace(
            math.log(self.sigma_max), math.log(self.sigma_min), steps, dtype=torch.float64
        )
        return torch.cat(
            [torch.atan(log_sigmas.exp()) * (2 / math.pi), torch.zeros(1, dtype=torch.float64)]
        )

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), float32, shaped like ``time``: exactly (0, 1) at 1 and (1, 0) at 0."""
        angle = _require_unit_time(time) * (math.pi / 2)
        # cos(a) as sin(pi/2 - a): exact where alpha is small
        alpha = torch.sin((1 - _require_unit_time(time)) * (math.pi / 2))
        return alpha.float().to(time.device), torch.sin(angle).float().to(time.device)

    def sample_times(self, uniform_B: Tensor) -> Tensor:
        """Training times: t = u."""
        return _require_unit_time(uniform_B).float().to(uniform_B.device)


class Straight:
    """Rectified flow: x = (1 - t) clean + t noise, velocity = noise - clean, t in [0, 1].

    TangoFlux uses it.

    ``training``: how training times are spread, "uniform" or "logit_normal" (arXiv 2403.03206, mean
    0 and deviation 1: more in the middle, as TangoFlux was trained). Sampling is the same.
    """

    def __init__(self, prediction: str = "velocity", training: str = "uniform") -> None:
        self.prediction = require_known("prediction", prediction, PREDICTIONS)
        self.training = require_known("training", training, TRAINING_TIMES)

    def __repr__(self) -> str:
        return f"Straight(prediction={self.prediction!r})"

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float64, from 1 to 0 in equal parts."""
        return torch.linspace(1, 0, _require_steps(steps) + 1, dtype=torch.float64)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) = (1 - t, t), float32, shaped like ``time``."""
        exact_time = _require_unit_time(time)
        return (1 - exact_time).float().to(time.device), exact_time.float().to(time.device)

    def sample_times(self, uniform_B: Tensor) -> Tensor:
        """Training times: t = u, or the logistic function of u's normal quantile."""
        exact_B = _require_unit_time(uniform_B)
        if self.training == "logit_normal":
            exact_B = torch.special.ndtri(exact_B).sigmoid()
        return exact_B.float().to(uniform_B.device)
