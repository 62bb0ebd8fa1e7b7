"""Stored optical flow as a view: 8-bit JPEG images beside the videos.

``ROOT/flow/<class>/<video name without suffix>/flow_x_00001.jpg`` holds the horizontal flow from
frame 0 to frame 1, ``flow_y_...`` the vertical one; 128 is no motion, 0 and 255 are -20 and +20
pixels (protocol row 48). A video of N frames has N - 1 of each.
"""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from mcn.data.datasets import Videos
from mcn.data.readers import VideoError

_AXIS = {"flow_u": "x", "flow_v": "y"}


def flow_folder(videos: Videos, index: int) -> Path:
    """Where the flow images of video ``index`` are looked for."""
    return videos.root / "flow" / Path(videos.names[index]).with_suffix("")


def flow_state(videos: Videos, index: int, view: str) -> str:
    """What changes whenever the flow images of video ``index`` may have: their names, sizes, times of change.

    Raises :class:`VideoError` for a missing folder.
    """
    folder, begins = flow_folder(videos, index), f"flow_{_AXIS[view]}_"
    try:
        with os.scandir(folder) as entries:
            images = [
                (e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.name.startswith(begins)
            ]
    except OSError as error:
        raise VideoError(f"{folder}: {error.strerror or error}") from error
    return repr((os.path.abspath(folder), sorted(images)))


def read_flow(folder: Path, indices: list[int], view: str, height: int, width: int) -> np.ndarray:
    """Flow aligned with a clip: ``T + 1`` frame indices -> uint8 ``(T, H, W, 3)``.

    Image ``t`` is the stored flow that leaves frame ``indices[t]``; where a short video repeats its
    first frame nothing moves, and the image is 128 throughout. An image of another size than the
    RGB frames is resized to ``height`` x ``width``. Raises :class:`VideoError` for a missing image.
    """
    images = []
    for now, after in pairwise(indices):
        if now == after:
            images.append(np.full((height, width), 128, np.uint8))
            continue
        path = folder / f"flow_{_AXIS[view]}_{now + 1:05d}.jpg"
        try:
            with Image.open(path) as image:
                grey = image.convert("L")
                if grey.size != (width, height):
                    grey = grey.resize((width, height), Image.Resampling.BILINEAR)
                images.append(np.asarray(grey))
        except OSError as error:
            reason = error.strerror or str(error)
            raise VideoError(
                f"{path}: {reason} (the flow views need the stored flow of every frame)"
            ) from error
    return np.stack(images)[..., None].repeat(3, axis=-1)
