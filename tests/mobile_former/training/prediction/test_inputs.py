"""Inputs of a prediction: files, URLs, videos and cameras."""

import cv2
import numpy as np
import pytest

from mobile_former.training.data.images import ImageError
from mobile_former.training.prediction.inputs import as_input, find_inputs


@pytest.mark.parametrize(
    ("name", "kind", "file_name"),
    [
        ("a/b.jpg", "file", "b.jpg"),
        ("clip.MP4", "video", "clip.MP4"),
        ("https://example.org/a%20b.png?size=3", "url", "a b.png"),
        ("http://example.org/clip.webm", "video", "clip.webm"),
        ("http://example.org/", "url", "download"),
        ("rtsp://camera.local/stream", "video", "stream"),
        ("camera:2", "camera", "camera-2"),
        ("/dev/video0", "camera", "camera-0"),
    ],
)
def test_the_kind_of_an_input_follows_from_its_name(name, kind, file_name):
    found = as_input(name)
    assert found.kind == kind
    assert found.file_name == file_name


def test_folders_and_globs_are_expanded_and_other_inputs_are_kept_once_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/b.jpg", "x/a.png", "clip.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [each.name for each in find_inputs(["camera:0", "clip.mp4", "x", "x/*.png", "http://h/a.png", "*.mp4"])]
    assert names == ["camera:0", "clip.mp4", "x/a.png", "x/b.jpg", "http://h/a.png"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_inputs(["nowhere.mp4"])


def test_an_image_is_downloaded_and_whatever_else_comes_is_an_error_with_the_reason(server):
    address, answers = server
    image = np.full((8, 9, 3), 200, np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    answers["/a.png"] = (200, {"Content-Type": "image/png", "Content-Length": str(len(data))}, data)
    answers["/moved.png"] = (302, {"Location": "/a.png"}, b"")
    answers["/missing.png"] = (404, {}, b"")
    answers["/page.png"] = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>")
    answers["/cut.png"] = (200, {"Content-Type": "image/png", "Content-Length": str(len(data))}, data[:20])
    for name in ("/a.png", "/moved.png"):
        np.testing.assert_array_equal(as_input(address + name).read(), image)
    for name, reason in (
        ("/missing.png", "404"),
        ("/page.png", "a web page, not an image"),
        ("/cut.png", f"broke off after 20 of {len(data)} bytes"),
    ):
        with pytest.raises(ImageError, match=reason) as error:
            as_input(address + name).read()
        assert str(error.value).startswith(address + name)
    with pytest.raises(ImageError, match="cannot be downloaded"):
        as_input("http://127.0.0.1:9/x.png").read()
