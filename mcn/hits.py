"""Which videos of a list were right, kept with a result so that two results can be compared video by video.

A mean alone cannot be paired: two networks of one accuracy may be right about the same videos or about
different ones, and how far apart the two can be by chance depends on that (:mod:`mcn.significance`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mcn.errors import MCNError
from mcn.holdout import source_of

_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Hits:
    """For each video of one list whether it was right, by metric; empty where that was not kept.

    ``right`` has a bitmap a metric, in hexadecimal: the first video is the highest bit of the first byte,
    the last byte is filled up with zeros. Raises :class:`~mcn.errors.MCNError`, in one line that names the
    field, for what does not fit together.

    >>> hits = hits_of(["a/v_X_g01_c01.avi", "a/v_X_g01_c02.avi", "a/v_X_g02_c01.avi"],
    ...                {"probe_top1": [True, False, True]})
    >>> hits.sources, hits.right, hits.of("probe_top1")
    ([0, 0, 1], {'probe_top1': 'a0'}, array([ True, False,  True]))
    """

    digest: str = ""  #: of the ordered names of the list: rows with the same one can be paired
    sources: list[int] = field(default_factory=list)  #: for each video the number of its source video
    right: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for fields that do not fit together."""
        sources = isinstance(self.sources, list) and all(type(number) is int for number in self.sources)
        if not sources or not isinstance(self.right, dict):
            raise MCNError("hits should be a digest, sources (a list of whole numbers) and bitmaps by metric")
        if not self.sources and not self.right and self.digest == "":
            return
        if not isinstance(self.digest, str) or not _DIGEST.fullmatch(self.digest):
            raise MCNError(f"hits.digest is {self.digest!r}: it should be 16 hexadecimal digits")
        for name, text in self.right.items():
            rest = -len(self.sources) % 8
            if not re.fullmatch(rf"[0-9a-f]{{{2 * ((len(self.sources) + rest) // 8)}}}", str(text)):
                raise MCNError(f"hits.right.{name} should have a bit for each of {len(self.sources)} videos")
            if int(text or "0", 16) & ((1 << rest) - 1):
                raise MCNError(f"hits.right.{name} has bits behind the last of {len(self.sources)} videos")

    def of(self, metric: str) -> NDArray[np.bool_]:
        """Whether each video was right, ``(videos,)``; raises ``KeyError`` for a metric it does not have."""
        packed = np.frombuffer(bytes.fromhex(self.right[metric]), dtype=np.uint8)
        return np.unpackbits(packed, count=len(self.sources)).astype(bool)


def hits_of(names: Sequence[str], right: Mapping[str, Sequence[bool] | NDArray[np.bool_]]) -> Hits:
    """The hits on a list of videos with these names, in its order; see :class:`Hits`."""
    numbers = {source: number for number, source in enumerate(dict.fromkeys(map(source_of, names)))}
    for metric, each in right.items():
        if len(each) != len(names):
            raise MCNError(f"{metric} has {len(each)} answers, for a list of {len(names)} videos")
    return Hits(
        blake2b("\n".join(names).encode(), digest_size=8).hexdigest(),
        [numbers[source_of(name)] for name in names],
        {metric: np.packbits(np.asarray(each, dtype=bool)).tobytes().hex() for metric, each in right.items()},
    )
