"""Kinetics-400: some 260,000 clips of 400 actions (Kay et al. 2017), from the copy that CVDF keeps; 450 GB.

For example ``python data_scripts/kinetics400.py get data/kinetics400 --parts val`` (30 GB), then ``extract``,
``check`` and ``prepare``. YouTube loses videos, so every copy lacks some: ``check`` says how many of those
listed are there. CVDF's replacements for damaged files are not fetched; ``check`` names what cannot be read.
"""

import sys
from collections.abc import Sequence
from urllib.parse import quote, unquote

from mcn.preparation.download import RemoteFile
from mcn.preparation.verbs import Bring, DataSource, main

BASE = "https://s3.amazonaws.com/kinetics/400"
PARTS = ("train", "val", "test")
TERMS = """Kinetics-400: the annotations are DeepMind's (CC BY 4.0), the copy of the videos is CVDF's
(https://github.com/cvdfoundation/kinetics-dataset); the videos' rights are their owners'."""


def remotes(parts: Sequence[str], bring: Bring) -> Sequence[RemoteFile]:
    """The archives that CVDF lists for each part, and the part's csv."""
    found = []
    for part in parts:
        listed = f"k400_{part}_path.txt"
        text = bring(RemoteFile(f"{BASE}/{part}/{listed}", f"lists/{listed}")).read_text(encoding="utf-8")
        for line in text.split():
            name = unquote(line.rsplit("/", 1)[-1])
            found.append(RemoteFile(quote(line, safe=":/%"), f"{part}/{name}"))
        found.append(RemoteFile(f"{BASE}/annotations/{part}.csv", f"annotations/{part}.csv"))
    return found


def folder_of(name: str) -> str | None:
    """Archives hold their part's videos without folders; lists go to annotations/."""
    top = name.split("/")[0]
    return top if top in (*PARTS, "annotations") and top != name else None


SOURCE = DataSource(
    "kinetics400.py",
    "Kinetics-400",
    TERMS,
    remotes,
    PARTS,
    folder_of,
    archives="train/part_0.tar.gz and the like, in train/, val/ or test/",
    kind="kinetics",
)

if __name__ == "__main__":
    sys.exit(main(SOURCE))
