"""The one writer of H.264."""

import io

import av
import numpy as np

from mcn._h264 import encode


def test_frames_come_back_at_their_size_and_rate() -> None:
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 255, (7, 4, 6, 1), np.uint8), 8, 1), 8, 2).repeat(3, 3)
    one = encode(frames, 12, crf="10")
    with av.open(io.BytesIO(one)) as container:
        assert container.streams.video[0].average_rate == 12
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert read.shape == frames.shape
    assert np.abs(read.astype(float) - frames).mean() < 4
    assert encode(frames, 12, crf="10") == one
    assert len(encode(frames, 12, crf="40")) < len(one)  # the options are the encoder's
