"""Generate: python tools/generate.py embedded/music "A recording of a sad piano solo" --seeds 0-3 --out generated"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from datamodules.prompt_sources import file_prompts
    from zoo import generate_command

    generate_command.main(argv, file_prompts)


if __name__ == "__main__":
    sys.exit(reported(main))
