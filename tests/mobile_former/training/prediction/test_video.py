"""Videos and cameras as inputs, and written videos."""

import cv2
import numpy as np
import pytest

from mobile_former.training.data.images import ImageError
from mobile_former.training.prediction.inputs import Input, as_input
from mobile_former.training.prediction.video import VideoWriter, read_video


def write_video(path, frames, rate):
    """Write a video of BGR frames with OpenCV."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_frames(path):
    """Return all frames of a video, BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def coloured(red, size=(48, 64)):
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0], image[..., 2] = red, 255 - red
    return image


def test_frames_come_in_order_with_number_time_and_colours(tmp_path):
    write_video(tmp_path / "a.mp4", [coloured(red)[..., ::-1] for red in range(0, 250, 25)], rate=20)
    frames = list(read_video(as_input(tmp_path / "a.mp4")))
    assert [frame.number for frame in frames] == list(range(10))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 20 for number in range(10)])
    for frame, red in zip(frames, range(0, 250, 25), strict=True):
        assert np.abs(frame.image.mean((0, 1)) - [red, 0, 255 - red]).max() < 16  # compressed
    assert len(list(read_video(as_input(tmp_path / "a.mp4"), max_frames=4))) == 4


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_a_written_video_has_its_frames_in_even_sizes(tmp_path, size):
    with VideoWriter(tmp_path / "a.mp4", 12.5) as writer:
        for red in (0, 120, 240):
            writer.write(coloured(red, size))
    frames = list(read_video(as_input(tmp_path / "a.mp4")))
    assert [frame.rate for frame in frames] == [12.5] * 3
    assert frames[0].image.shape == (size[0] // 2 * 2, size[1] // 2 * 2, 3)
    assert [frame.image[..., 0].mean() for frame in frames] == pytest.approx([0, 120, 240], abs=16)


def test_what_is_no_video_is_an_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name in ("a.mp4", "missing.mp4"):
        with pytest.raises(ImageError, match=f"{name}: cannot be opened as a video"):
            list(read_video(as_input(tmp_path / name)))


def test_a_video_that_is_cut_short_is_read_to_its_end_with_a_warning(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.avi", list(noise), rate=20)
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    frames = list(read_video(as_input(tmp_path / "a.avi")))
    assert 0 < len(frames) < 50
    assert f"ends after {len(frames)} of 50 frames" in capfd.readouterr().err


class Camera:
    """A stand-in for a camera: three frames, without a rate."""

    def __init__(self, number):
        self.number, self.left, self.released = number, 3, False

    def isOpened(self):  # noqa: N802
        return self.number == 1

    def get(self, _):
        return 0.0

    def read(self):
        self.left -= 1
        return (self.left >= 0, coloured(9)[..., ::-1])

    def release(self):
        self.released = True


def test_a_camera_is_read_until_the_reader_stops_and_then_released(monkeypatch):
    opened = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: opened.append(Camera(number)) or opened[-1])
    frames = read_video(Input("camera:1", "camera"))
    assert next(frames).image[0, 0].tolist() == [9, 0, 246]
    assert not opened[0].released
    frames.close()
    assert opened[0].released
    assert [frame.number for frame in read_video(Input("camera:1", "camera"), 2)] == [0, 1]
    with pytest.raises(ImageError, match="camera:2: cannot be opened as a camera"):
        next(read_video(Input("camera:2", "camera")))
