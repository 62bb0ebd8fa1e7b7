"""``python -m mcn`` is the command ``mcn``: what ``torchrun -m mcn ...`` starts."""

import sys

from mcn.cli import main

if __name__ == "__main__":
    sys.exit(main())
