"""TV-L1 flow on a moving square: right direction, right scale, right number of images."""

import numpy as np
import pytest
from PIL import Image

from mcn.data.flow import read_flow
from mcn.flow import quantise, write_flow

cv2 = pytest.importorskip("cv2", reason="the extra `data` is not installed")


@pytest.fixture
def moving(tmp_path):
    import av

    path = tmp_path / "moving.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.width = stream.height = 64
        texture = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
        texture = cv2.GaussianBlur(texture, (0, 0), 2)
        for n in range(5):  # 1 pixel right, 2 pixels down a frame
            frame = np.roll(texture, (2 * n, n), axis=(0, 1))[..., None].repeat(3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_flow_has_the_motion_of_the_video(moving, tmp_path):
    folder = tmp_path / "flow"
    assert write_flow(moving, folder) == 4
    assert sorted(p.name for p in folder.iterdir())[:5] == [f"flow_x_{n:05d}.jpg" for n in range(1, 5)] + [
        "flow_y_00001.jpg"
    ]
    for axis, motion in (("x", 1.0), ("y", 2.0)):
        image = np.asarray(Image.open(folder / f"flow_{axis}_00002.jpg")).astype(float)
        inner = image[16:-16, 16:-16]
        assert np.median(inner) == pytest.approx(quantise(np.array(motion)), abs=1.5)


def test_flow_goes_on_where_it_stopped(moving, tmp_path):
    folder = tmp_path / "flow"
    write_flow(moving, folder)
    (folder / "flow_y_00003.jpg").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    write_flow(moving, folder)
    changed = [name for name, stamp in before.items() if (folder / name).stat().st_mtime_ns != stamp]
    assert changed == ["flow_x_00003.jpg"]
    assert (folder / "flow_y_00003.jpg").exists()


def test_the_flow_view_reads_what_was_written(moving, tmp_path):
    folder = tmp_path / "flow"
    write_flow(moving, folder)
    clip = read_flow(folder, [0, 0, 1, 2], "flow_v", 64, 64)
    assert clip.shape == (3, 64, 64, 3)
    assert (clip[0] == 128).all()  # the repeated first frame
    assert np.median(clip[1, 16:-16, 16:-16]) > 135
