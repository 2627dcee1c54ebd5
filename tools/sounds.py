"""Recorded sounds: python tools/sounds.py fetch --to sounds --set small, then python tools/sounds.py list --root sounds"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported

if __name__ == "__main__":
    from datamodules.sound_fetch import main

    sys.exit(reported(main))
