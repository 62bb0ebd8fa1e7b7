"""UCF101: 13,320 clips of 101 actions (Soomro, Zamir, Shah 2012), 7 GB.

For example ``python data_scripts/ucf101.py get data/ucf101``, then ``extract``, ``check`` and, for a copy
that trains several times as fast, ``prepare data/ucf101 data/ucf101-small``. Each verb can be stopped and
started again. ``--help`` behind a verb lists its settings.
"""

import sys
from collections.abc import Sequence

from mcn.preparation.download import RemoteFile
from mcn.preparation.verbs import Bring, DataSource, main

BASE = "https://www.crcv.ucf.edu/data/UCF101"
# The publisher states no checksums; these are the ones that torchvision and TFDS keep.
FILES = (
    RemoteFile(
        f"{BASE}/UCF101.rar",
        "UCF101.rar",
        size=6_932_971_618,
        sha256="ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55",
    ),
    RemoteFile(
        f"{BASE}/UCF101TrainTestSplits-RecognitionTask.zip",
        "UCF101TrainTestSplits-RecognitionTask.zip",
        size=113_943,
        sha256="5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
    ),
)
NAMES = tuple(remote.name for remote in FILES)
TERMS = """UCF101 is given out for research, without an open licence:
https://www.crcv.ucf.edu/data/UCF101.php tells the terms and whom to cite."""


def remotes(parts: Sequence[str], bring: Bring) -> Sequence[RemoteFile]:
    """Videos (UCF-101/) and lists (ucfTrainTestlist/)."""
    return FILES


def folder_of(name: str) -> str | None:
    """Both archives bring their folder along."""
    return "" if name in NAMES else None


SOURCE = DataSource(
    "ucf101.py",
    "UCF101",
    TERMS,
    remotes,
    folder_of=folder_of,
    archives=" and ".join(NAMES),
    kind="ucf101",
)

if __name__ == "__main__":
    sys.exit(main(SOURCE))
