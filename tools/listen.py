"""Listen: python tools/listen.py page|blind --before RUN/audio/before --after RUN/audio/after ..., then summary answers.csv"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported

if __name__ == "__main__":
    from lightning_modules.listen_command import main

    sys.exit(reported(main))
