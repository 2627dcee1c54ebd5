"""How a model is sampled: what was asked for, else what its run did, else what its export recorded, else a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.diffusion import Sampler

DEFAULTS = {"steps": 20, "guidance_scale": 3.0, "eta": 1.0, "rule": "ddim", "negative": "", "seconds": 4.096}
_OF_DDPO = {"sample_steps": 20, "guidance_scale": 1.0, "eta": 1.0, "rule": "ddim"}  # of a run whose configuration leaves them out
_OF_RUN = {"steps": "sample_steps", "guidance_scale": "guidance_scale", "eta": "eta", "rule": "rule"}  # keys of its module


@dataclass(frozen=True)
class SamplingSettings:
    """``eta``: one number, or one a step. ``negative`` and ``seconds`` are of prompts that say nothing of their own."""

    steps: int
    guidance_scale: float
    eta: float | tuple[float, ...]
    rule: str
    negative: str
    seconds: float

    @property
    def sampler(self) -> Sampler:
        """Raises ``ValueError`` on values that cannot be meant."""
        return Sampler(self.steps, self.guidance_scale, self.eta, self.rule)


def sampling_settings(
    asked: Mapping[str, Any], run: Mapping[str, Any], recorded: Mapping[str, Any], evaluation: bool = False
) -> SamplingSettings:
    """``asked``: values by the names of ``SamplingSettings``, None where nothing is asked. ``run``: a run's configuration, or
    ``{}``. ``recorded``: ``zoo.generation.recorded_sampling``. With ``evaluation`` the run's own ``eval_*`` settings go before
    those of its training.

    Raises ``ValueError`` when there is one eta a step for another number of steps.
    """
    module, data = run.get("module") or {}, run.get("data") or {}
    if module.get("_target_") == "lightning_modules.ddpo.DDPO":
        module = {**_OF_DDPO, **module}
    if isinstance(data.get("prompts"), Mapping):  # prompts from elsewhere carry their own negative and seconds
        data = {**data, **data["prompts"]}
    found = {}
    for name, default in DEFAULTS.items():
        own = _OF_RUN.get(name)
        of_evaluation = module.get(f"eval_{own}") if evaluation and own else None
        of_run = data.get(name) if own is None else module.get(own)
        values = (asked.get(name), of_evaluation, of_run, recorded.get(name), default)
        found[name] = next(value for value in values if value is not None)
    if isinstance(found["eta"], (list, tuple)):
        found["eta"] = tuple(found["eta"])
        if len(found["eta"]) != found["steps"]:
            raise ValueError(f"the run has one eta for each of its {len(found['eta'])} steps; give --eta when --steps is "
                             f"{found['steps']}")  # fmt: skip
    return SamplingSettings(**found)
