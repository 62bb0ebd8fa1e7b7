"""The synthetic actions: short videos, in UCF101's layout, whose class is the motion alone.

For example ``python data_scripts/synthetic.py get data/synthetic --classes 8 --size 48``. Running it again
continues an interrupted run and leaves a complete set alone.
"""

import sys

from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions
from mcn.preparation.verbs import DataSource, main

SOURCE = DataSource(
    "synthetic.py", "synthetic actions", make=write_synthetic_actions, settings=SyntheticConfig
)

if __name__ == "__main__":
    sys.exit(main(SOURCE))
