import pytest

from mobile_former.whole_file import write_whole


def test_a_file_is_written_with_its_folder_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "x.json"
    for content in (b"first", memoryview(b"second")):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_error_names_the_file_and_leaves_the_older_one(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=rf"cannot write the checkpoint {path}: No space left on device"):
        write_whole(path, b"new", kind="the checkpoint ", before_replace=fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
