"""``python -m cfmvit`` is ``cfmvit``."""

import sys

from cfmvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
