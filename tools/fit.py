"""Trains: python tools/fit.py --config configs/ddpo/quickstart.yaml trainer.max_epochs=20"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.command_line import normalized
from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/fit.py", description=__doc__, allow_abbrev=False
    )
    files = "YAML file; several may be given, later ones win"
    parser.add_argument("-c", "--config", action="append", default=[], help=files)
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything and print sizes, but train and write nothing",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as seed=1 out_dir=runs/one resume=true",
    )
    options = parser.parse_intermixed_args(normalized(argv))
    from omegaconf import OmegaConf

    from zoo.configuration import announcement, read_configuration
    from zoo.secrets import masked

    config = read_configuration(options.config, options.overrides)
    if options.print_config:
        print(OmegaConf.to_yaml(masked(config.to_dict())), end="")
        return
    print(announcement(config, options.config), end="", flush=True)
    from lightning_modules import run  # takes seconds

    if options.dry_run:
        print(run.dry_run(config))
    else:
        run.fit(config, ["python", "tools/fit.py", *argv])


if __name__ == "__main__":
    sys.exit(reported(main))
