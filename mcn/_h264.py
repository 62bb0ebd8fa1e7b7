"""Frames to H.264 in MP4, which every browser plays."""

import io
from collections.abc import Iterable

import av
import numpy as np
from numpy.typing import NDArray


def encode(frames: Iterable[NDArray[np.uint8]], fps: int, **options: str) -> bytes:
    """RGB frames ``(H, W, 3)`` of one even size as the bytes of an MP4 file; ``options`` are libx264's.

    In one thread, so that the bytes do not depend on the number of cores.

    >>> encode([np.zeros((16, 16, 3), np.uint8)] * 2, 25, crf="18")[4:8]
    b'ftyp'
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {**options, "threads": "1"}
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
