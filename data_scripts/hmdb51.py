"""HMDB51: 6,766 clips of 51 actions (Kuehne, Jhuang, Garrote, Poggio, Serre 2011), 2 GB.

For example ``python data_scripts/hmdb51.py get data/hmdb51``, then ``extract``, ``check`` and ``prepare``.
The lab hands the archives out through a drive that shows some clients a page instead of the file; where
that happens, fetch both with a browser and give the folder: ``get data/hmdb51 --from ~/Downloads``.
"""

import sys
from collections.abc import Sequence

from mcn.preparation.download import RemoteFile
from mcn.preparation.verbs import Bring, DataSource, main

BASE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
VIDEOS, LISTS = "hmdb51_org.rar", "test_train_splits.rar"
# The lab states neither sizes nor checksums: what is seen first is recorded, and compared later.
FILES = (
    RemoteFile(f"{BASE}17anw5Oxp7lmp9cMwXPOyOpL5olDLmPpj", VIDEOS),
    RemoteFile(f"{BASE}1NQxJWJSYWefyNS-LFYCenFih4gRDUPCX", LISTS),
)
TERMS = """HMDB51: https://serre.lab.brown.edu/hmdb51.html tells the terms and whom to cite.
Its clips come from films and the web; their own rights are not the lab's to give."""


def remotes(parts: Sequence[str], bring: Bring) -> Sequence[RemoteFile]:
    """The videos, an archive of one archive a class, and the lists (testTrainMulti_7030_splits/)."""
    return FILES


def folder_of(name: str) -> str | None:
    """Class folders are put together; the lists bring their folder along."""
    return {VIDEOS: "hmdb51_org", LISTS: ""}.get(name)


SOURCE = DataSource(
    "hmdb51.py",
    "HMDB51",
    TERMS,
    remotes,
    folder_of=folder_of,
    archives=f"{VIDEOS} and {LISTS}",
    kind="hmdb51",
)

if __name__ == "__main__":
    sys.exit(main(SOURCE))
