"""TV-L1 optical flow of a video, stored as the flow views read it (protocol row 48).

OpenCV's TV-L1 on grey frames, clipped to +-20 pixels, as 8-bit JPEG: slow (a few frame pairs a
second a core), so it is computed once and kept beside the videos.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mcn.data.readers import open_video
from mcn.errors import MCNError
from mcn.files import write_atomically

#: Motion, in pixels a frame, that the ends of the 8-bit scale stand for.
BOUND = 20.0


def quantise(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels -> uint8: -20 and below is 0, no motion 128, +20 and above 255.

    >>> quantise(np.array([-30.0, 0.0, 30.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    scaled = (np.clip(flow, -BOUND, BOUND) + BOUND) * (255 / (2 * BOUND))
    return np.rint(scaled).astype(np.uint8)


def write_flow(video: Path, folder: Path, reader: str = "auto") -> int:
    """Write ``flow_x_00001.jpg``, ``flow_y_00001.jpg``, ... of a video into ``folder``.

    Image ``n`` is the flow from frame ``n - 1`` to frame ``n``; a video of N frames gives N - 1 of
    each. Pairs that are there already are not computed again, so an interrupted call goes on where
    it stopped. Gives the number of pairs. Raises :class:`~mcn.errors.MCNError` where OpenCV's contrib modules
    are not installed, :class:`mcn.data.readers.VideoError` for a video that cannot be read.
    """
    try:
        import cv2

        tvl1: Any = cv2.optflow.createOptFlow_DualTVL1()
    except (ImportError, AttributeError) as error:
        raise MCNError("TV-L1 flow needs OpenCV's contrib modules: pip install 'mcn[data]'") from error
    with open_video(video, reader) as opened:
        pairs = len(opened) - 1
        wanted = [n for n in range(1, pairs + 1) if not (folder / f"flow_y_{n:05d}.jpg").exists()]
        needed = sorted({n - 1 for n in wanted} | set(wanted))
        decoded = opened.frames(needed) if needed else ()  # in one pass: a pair at a time would seek
        grey = {n: cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for n, f in zip(needed, decoded, strict=True)}
        for n in wanted:
            before, after = grey[n - 1], grey[n]
            horizontal, vertical = np.moveaxis(quantise(tvl1.calc(before, after, None)), -1, 0)
            # y last: it is what says that the pair is done
            for axis, image in (("x", horizontal), ("y", vertical)):
                _write_jpeg(folder / f"flow_{axis}_{n:05d}.jpg", image)
    return pairs


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    write_atomically(path, lambda file: Image.fromarray(image).save(file, format="JPEG", quality=95))
