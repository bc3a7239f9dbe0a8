"""``python -m bench`` is ``cfmvit bench``."""

import sys

from cfmvit.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
