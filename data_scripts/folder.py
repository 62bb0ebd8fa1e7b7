"""Your own videos, in any folder: labels are class folders, if there are any.

For example ``python data_scripts/folder.py check ~/clips``, then ``prepare ~/clips data/clips-small`` for a
copy that trains several times as fast.
"""

import sys

from mcn.preparation.verbs import DataSource, main

SOURCE = DataSource("folder.py", "a folder of videos")

if __name__ == "__main__":
    sys.exit(main(SOURCE))
