"""How a model is sampled: what was asked for, else what its run did, else what its export recorded,
else a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.diffusion import Sampler
from zoo.errors import UserError

DEFAULTS = {
    "steps": 20,
    "guidance_scale": 3.0,
    "eta": 1.0,
    "rule": "ddim",
    "negative": "",
    "seconds": 4.096,
}
_OF_DDPO = {
    "guidance_scale": 1.0
}  # of a run whose configuration leaves it out; its other defaults are those above
_OF_RUN = {
    "steps": "sample_steps",
    "guidance_scale": "guidance_scale",
    "eta": "eta",
    "rule": "rule",
}  # keys of its module


@dataclass(frozen=True)
class SamplingSettings:
    """``eta``: one number, or one a step.

    ``negative`` and ``seconds`` are of prompts that say nothing of their own.
    """

    steps: int
    guidance_scale: float
    eta: float | tuple[float, ...]
    rule: str
    negative: str
    seconds: float

    @property
    def sampler(self) -> Sampler:
        """Raises ``UserError`` on values that cannot be meant."""
        return Sampler(self.steps, self.guidance_scale, self.eta, self.rule)


def run_sampling(run: Mapping[str, Any], evaluation: bool = False) -> dict[str, Any]:
    """What a run's configuration says of its sampling, by the names of ``SamplingSettings``; what
    it leaves open is absent.

    With ``evaluation`` its own ``eval_*`` settings go before those of its training.
    """
    module, data = run.get("module") or {}, run.get("data") or {}
    if module.get("_target_") == "lightning_modules.rl.ddpo.DDPO":
        module = {**_OF_DDPO, **module}
    data = data if isinstance(data, Mapping) else {}
    if isinstance(
        data.get("prompts"), Mapping
    ):  # prompts from elsewhere carry their own negative and seconds
        data = {**data, **data["prompts"]}
    found = {}
    for name in DEFAULTS:
        own = _OF_RUN.get(name)
        of_evaluation = module.get(f"eval_{own}") if evaluation and own else None
        of_training = data.get(name) if own is None else module.get(own)
        found[name] = of_training if of_evaluation is None else of_evaluation
    return {name: value for name, value in found.items() if value is not None}


def sampling_settings(
    asked: Mapping[str, Any],
    run: Mapping[str, Any],
    recorded: Mapping[str, Any],
    evaluation: bool = False,
) -> SamplingSettings:
    """``asked``: values by the names of ``SamplingSettings``, None where nothing is asked.

    ``run``: a run's configuration, or ``{}``. ``recorded``:
    ``zoo.hub.run_models.recorded_sampling``. With ``evaluation`` the run's own ``eval_*``
    settings go before those of its training.

    Raises ``UserError`` when there is one eta a step for another number of steps.
    """
    of_run = run_sampling(run, evaluation)
    found = {}
    for name, default in DEFAULTS.items():
        values = (asked.get(name), of_run.get(name), recorded.get(name), default)
        found[name] = next(value for value in values if value is not None)
    if isinstance(found["eta"], (list, tuple)):
        found["eta"] = tuple(found["eta"])
        if len(found["eta"]) != found["steps"]:
            raise UserError(
                f"the run has one eta for each of its {len(found['eta'])} steps; give --eta when"
                f" --steps is {found['steps']}"
            )
    return SamplingSettings(**found)
