"""A rendered piano set in EMOPIA's layout: python tools/piano_demo.py --to data/piano_demo"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported

if __name__ == "__main__":
    from datamodules.piano_command import main

    sys.exit(reported(main))
