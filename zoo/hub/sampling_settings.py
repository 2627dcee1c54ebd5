"""How a model is sampled: by request, else as in its run, its export, or by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from zoo.diffusion import Sampler
from zoo.errors import UserError

Eta = float | tuple[float, ...]


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that sampling needs.

    ``eta``: one number, or one per step. ``negative`` and ``seconds`` are used for prompts that
    state none.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    eta: Eta = 1.0
    rule: str = "ddim"
    negative: str = ""
    seconds: float = 4.096

    @property
    def sampler(self) -> Sampler:
        """Raises ``UserError`` for values out of range."""
        return Sampler(self.steps, self.guidance_scale, self.eta, self.rule)


@dataclass(frozen=True)
class PartialSampling:
    """The fields of ``SamplingSettings`` that one source states; None where it states nothing."""

    steps: int | None = None
    guidance_scale: float | None = None
    eta: Eta | None = None
    rule: str | None = None
    negative: str | None = None
    seconds: float | None = None

    @staticmethod
    def read(values: Mapping[str, Any], where: str) -> PartialSampling:
        """From plain values, such as those of a JSON file; other keys are ignored.

        Raises ``UserError``, which begins with ``where``, for a value of the wrong type.
        """
        from zoo.signatures import bind

        known = {field.name for field in fields(PartialSampling)}
        stated = {name: value for name, value in values.items() if name in known}
        return PartialSampling(**bind(PartialSampling, stated, where))

    def stated(self) -> dict[str, Any]:
        """Name -> value of what is stated."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def merged(*sources: PartialSampling) -> SamplingSettings:
    """Each field from the first source that states it, else its default.

    Raises ``UserError`` when there is one eta per step for another number of steps.
    """
    values: dict[str, Any] = {}
    for source in reversed(sources):
        values |= source.stated()
    found = SamplingSettings(**values)
    if isinstance(found.eta, tuple) and len(found.eta) != found.steps:
        raise UserError(
            f"the run has one eta for each of its {len(found.eta)} steps; give --eta when --steps"
            f" is {found.steps}"
        )
    return found
