"""TV-L1 optical flow of videos, stored as the flow views read it (protocol row 48).

TV-L1 on grey frames, clipped to +-20 pixels, as 8-bit JPEG. It is slow, so it is computed once and
kept beside the videos: by OpenCV, a few frame pairs a second a core, or by
:mod:`mcn.preparation.tvl1` in batches on a GPU. The two agree to some hundredths of a pixel; use one of
them for all videos of a data set.

Image ``n`` is the flow from frame ``n - 1`` to frame ``n``; a video of N frames has N - 1 of each.
A pair is done when its ``flow_y`` image is there, and is not computed again: whatever is interrupted
goes on where it stopped. Frames are decoded in supervised children, one at a time, so that neither
the length of a video nor what is wrong with it matters. This module needs no torch to be imported.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from mcn.data._prepared import Prepared
from mcn.data.datasets import Videos
from mcn.data.flow import flow_folder
from mcn.data.readers import VideoError, open_video, to_rgb
from mcn.data.safe import OpenVideo, open_safely
from mcn.data.supervise import TIMEOUT, supervised
from mcn.data.videoinfo import Tick, nothing
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.preparation.parallel import parallel_map

if TYPE_CHECKING:
    from mcn.preparation.flow_device import DeviceFlow

#: Motion, in pixels a frame, that the ends of the 8-bit scale stand for.
BOUND = 20.0
#: What may compute the flow.
Method = Literal["opencv", "torch"]
Compute = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two stacks of grey frames (n, H, W) -> flow in pixels (n, 2, H, W)."""

_LUMA = np.array([9798, 19235, 3735], np.int32)  # .299, .587, .114 in units of 2^-15, as OpenCV has them
_A_PIXEL = 1e-3  # seconds for a pixel of a pair: many times what OpenCV takes, which cannot say it gets on


def quantise(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels -> uint8: up to -20 is 0, no motion 128, from +20 on 255 (:eq:`eq-retrieval-flow`).

    >>> quantise(np.array([-30.0, 0.0, 30.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    scaled = (np.clip(flow, -BOUND, BOUND) + BOUND) * (255 / (2 * BOUND))
    return np.rint(scaled).astype(np.uint8)


def to_grey(rgb: np.ndarray) -> np.ndarray:
    """RGB ``uint8 (..., 3)`` -> grey ``uint8 (...)``, bit for bit as OpenCV converts it.

    >>> to_grey(np.array([[255, 255, 255], [255, 0, 0]], np.uint8))
    array([255,  76], dtype=uint8)
    """
    return ((rgb @ _LUMA + (1 << 14)) >> 15).astype(np.uint8)


def flow_video(path: str, folder: str, video: OpenVideo | None = None, *, tick: Tick = nothing) -> int:
    """Write the flow of one video by OpenCV on one core, in this process; gives the number of pairs.

    ``video`` is an open one at ``path``, not yet read from. Made for
    :func:`mcn.data.supervise.supervised`; raises as :func:`write_flow`.
    """
    try:
        import cv2

        cv2.setNumThreads(1)
        tvl1: Any = cv2.optflow.createOptFlow_DualTVL1()
    except (ImportError, AttributeError) as error:
        raise MCNError(
            "TV-L1 flow by OpenCV needs its contrib modules: pip install 'mcn[data]', or --method torch"
        ) from error
    if video is None:
        video = open_video(path, "pyav", tick=tick)
    wanted = missing_pairs(Path(folder), video)
    if wanted:
        frames = _grey_frames(video, min(wanted) - 1, tick)
        before = next(frames)
        for n, after in zip(range(min(wanted), max(wanted) + 1), frames, strict=False):
            if n in wanted:
                store_pair(Path(folder), n, np.moveaxis(tvl1.calc(before, after, None), -1, 0))
                tick()
            before = after
    return len(video) - 1


def missing_pairs(folder: Path, video: OpenVideo) -> set[int]:
    """Numbers of the pairs of a video that are still to be done."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    _remove_left_over(folder, there)
    return {n for n in range(1, len(video)) if f"flow_y_{n:05d}.jpg" not in there}


def _remove_left_over(folder: Path, names: set[str]) -> None:
    """Remove what processes that were killed had begun; whoever else works here is done within a minute."""
    for path in (folder / name for name in names if name.startswith(".flow_") and name.endswith(".partial")):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:
                path.unlink()


def store_pair(folder: Path, number: int, flow: np.ndarray) -> None:
    """Write the two images of a pair, given its flow (2, H, W) in pixels."""
    # y last: it is what says that the pair is done
    for axis, values in zip("xy", flow, strict=True):
        save = partial(Image.fromarray(quantise(values)).save, format="JPEG", quality=95)
        write_atomically(folder / f"flow_{axis}_{number:05d}.jpg", save)


def _grey_frames(video: OpenVideo, start: int, tick: Tick) -> Iterator[np.ndarray]:
    """Grey frames ``uint8 (H, W)`` of a video from number ``start`` on, in constant memory."""
    reformatter = VideoReformatter()
    if isinstance(video, Prepared):
        frames = video.everything()
    else:
        frames = open_video(video.path, "pyav", video.info).stream()
    for index, frame in enumerate(frames):
        tick()
        if index >= start:
            yield to_grey(to_rgb(reformatter, frame, video.info.height, video.info.width))


_going: dict[tuple[Any, ...], Iterator[np.ndarray]] = {}


def read_grey(path: str, video: OpenVideo, start: int, count: int, *, tick: Tick = nothing) -> np.ndarray:
    """Grey frames ``start`` to ``start + count - 1`` of a video, ``uint8 (count, H, W)``.

    To read on where the last call in this process stopped costs no second decode of what went before.
    """
    known = (path, video.entry if isinstance(video, Prepared) else video.info)
    frames = _going.pop((*known, start), None) or _grey_frames(video, start, tick)
    _going.clear()  # one file is open at most
    chunk = np.stack([next(frames) for _ in range(count)])
    if (end := start + count) < len(video):
        following = (*known, end)
        _going[following] = frames
    return chunk


def flow_in_chunks(video: OpenVideo, folder: Path, compute: Compute, chunk: int) -> int:
    """Write the flow of one video by ``compute``, ``chunk`` pairs at a time; gives the number of pairs."""
    wanted = missing_pairs(folder, video)
    first = min(wanted, default=len(video) + 1) - 1
    last = np.empty((0, video.info.height, video.info.width), np.uint8)  # the frame before a chunk
    for start in range(first, len(video), chunk):
        count = min(chunk, len(video) - start)
        frames = np.concatenate((last, supervised(read_grey, video.path, video, start, count)))
        offset = start - len(last)  # number of frames[0]
        numbers = [n for n in range(offset + 1, offset + len(frames)) if n in wanted]
        if numbers:
            at = np.array(numbers) - offset
            for n, flow in zip(numbers, compute(frames[at - 1], frames[at]), strict=True):
                store_pair(folder, n, flow)
        last = frames[-1:]
    return len(video) - 1


def write_flow(
    video: str | os.PathLike[str] | OpenVideo,
    folder: str | os.PathLike[str],
    method: Method = "opencv",
    device: str = "cpu",
) -> int:
    """Write ``flow_x_00001.jpg``, ``flow_y_00001.jpg``, ... of a video into ``folder``; gives the pairs.

    ``video`` is a file or an open video. ``method`` is ``opencv`` (one core) or ``torch``, which
    computes on ``device``. Of a damaged file the readable part has flow. Raises
    :class:`~mcn.data.readers.VideoError` for a video that cannot be read, and
    :class:`~mcn.errors.MCNError` where OpenCV's contrib modules are not installed, where there is no
    such device, and for images that cannot be written.
    """
    if isinstance(video, str | os.PathLike):
        video = open_safely(video)
    height, width = video.info.height, video.info.width
    if method == "opencv":
        timeout = TIMEOUT + _A_PIXEL * height * width
        return supervised(flow_video, video.path, os.path.abspath(folder), video, timeout=timeout)
    compute = _on_device(method, device)
    return flow_in_chunks(video, Path(folder), compute, compute.pairs_of(height, width))


def _on_device(method: str, device: str) -> "DeviceFlow":
    if method != "torch":
        raise MCNError(f"method={method!r}: one of opencv, torch")
    from mcn.preparation.flow_device import device_flow

    return device_flow(device)


class Written(NamedTuple):
    """What :func:`write_flow_of` did: frame pairs with stored flow, and lines about what was wrong."""

    pairs: int
    unreadable: list[str]
    damaged: list[str]


def write_flow_of(
    videos: Videos,
    *,
    method: Method = "opencv",
    device: str = "cpu",
    workers: int | None = None,
    dask: str = "",
    progress: bool = True,
) -> Written:
    """Write the flow of all ``videos`` into ``ROOT/flow/``, several at a time.

    ``workers`` is how many at a time (default: one a core), ``dask`` the address of a scheduler whose
    workers see the same files. With ``method="torch"`` the workers decode and write, and share the
    ``device``, which computes pairs of several files in one batch. ``progress`` shows a bar with the
    time left. Raises as :func:`write_flow`, but counts the videos that cannot be read.
    """
    if method != "opencv" and not dask:
        _on_device(method, device)  # what is wrong with it is said before anything is begun
    done = Written(0, [], [])
    one = partial(_flow_of_one, videos, method, device)
    for _, (pairs, unreadable, damage) in parallel_map(
        one, range(len(videos)), workers=workers, dask=dask, desc="flow" if progress else ""
    ):
        done = done._replace(pairs=done.pairs + pairs)
        done.unreadable.extend([unreadable] if unreadable else [])
        done.damaged.extend([damage] if damage else [])
    return done


def _flow_of_one(videos: Videos, method: Method, device: str, index: int) -> tuple[int, str, str]:
    """Flow of one video: pairs, why it is unreadable, what is damaged."""
    try:
        with videos.open(index) as video:
            damage = f"{video.path}: {video.info.damage}" if video.info.damage else ""
            return write_flow(video, flow_folder(videos, index), method, device), "", damage
    except VideoError as error:
        return 0, str(error), ""
