"""Where a model runs; refused before loading when this machine has no such device."""

from __future__ import annotations

import torch

from zoo.errors import UserError


def usable_device(device: torch.device | str) -> torch.device:
    """``device`` as torch knows it.

    Raises ``UserError`` for a name that torch does not know and a device that is not here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # no driver, a torch without it, no such number
        here = [
            "cpu",
            *(
                [torch.accelerator.current_accelerator().type]
                if torch.accelerator.is_available()
                else []
            ),
        ]
        why = str(error).split("\n")[0].split(". ")[0]
        raise UserError(
            f"the device {str(device)!r} cannot be used ({why}); this machine has"
            f" {' and '.join(here)}"
        ) from error
    return found
