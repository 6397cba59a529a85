import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image, ImageCms, ImageOps, features
from sklearn.datasets import load_sample_images

from mobile_former.errors import InputError
from mobile_former.training.data import images
from mobile_former.training.data.images import (
    IMAGE_SUFFIXES,
    ImageError,
    decode_image,
    decode_jpeg,
    expand,
    find_images,
    image_format,
    normalise,
    read_image,
    resize,
    to_batch,
    to_planes,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((120, 91), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def files(photograph) -> dict[str, bytes]:
    """A small photograph in every format."""
    palette = photograph.quantize(64)
    return {
        "baseline.jpg": encoded(photograph, "JPEG", quality=90),
        "progressive.jpg": encoded(photograph, "JPEG", quality=90, progressive=True),
        "restarts.jpg": encoded(photograph, "JPEG", quality=90, restart_marker_blocks=4),
        "grey.jpg": encoded(photograph.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(photograph.convert("CMYK"), "JPEG"),
        "rgb.png": encoded(photograph, "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "grey.png": encoded(photograph.convert("L"), "PNG"),
        "bilevel.png": encoded(photograph.convert("1"), "PNG"),
        "lossy.webp": encoded(photograph, "WEBP", quality=90),
        "lossless.webp": encoded(photograph, "WEBP", lossless=True),
        "rgb.bmp": encoded(photograph, "BMP"),
        "raw.tiff": encoded(photograph, "TIFF"),
        "lzw.tiff": encoded(photograph, "TIFF", compression="tiff_lzw"),
        "cmyk.tiff": encoded(photograph.convert("CMYK"), "TIFF"),
        "palette.gif": encoded(palette, "GIF"),
        "rgb.ppm": encoded(photograph, "PPM"),
    }


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def opencv(suffix: str, image: np.ndarray, *options: int) -> bytes:
    """Encode an RGB, RGBA or greyscale image of any depth with OpenCV."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(suffix, image, options)[1].tobytes()


def is_image(array: np.ndarray) -> bool:
    return (
        array.dtype == np.uint8
        and array.ndim == 3
        and array.shape[2] == 3
        and array.size > 0
        and array.flags.c_contiguous
        and array.flags.writeable
    )


# Formats and colours


def test_the_pixels_of_every_format_equal_pillows(files, tmp_path):
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        image = read_image(path)
        assert is_image(image), name
        np.testing.assert_array_equal(image, pillow(data), err_msg=name)
        assert path.suffix in IMAGE_SUFFIXES


@pytest.mark.parametrize("sampling", ["411", "420", "422", "440", "444"])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 17), (500, 375)])
def test_jpeg_pixels_equal_pillows_for_every_subsampling_and_for_odd_sizes(photograph, sampling, size):
    image = np.asarray(photograph.resize(size))
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    for progressive in (0, 1):
        data = opencv(
            ".jpg", image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive
        )
        assert decode_jpeg(data) is not None, "should be decoded by simplejpeg"
        np.testing.assert_array_equal(decode_image(data, "x.jpg"), pillow(data))


def test_an_adobe_rgb_jpeg_keeps_its_channels(photograph):
    data = encoded(photograph, "JPEG", quality=95, keep_rgb=True)
    np.testing.assert_array_equal(decode_image(data, "x.jpg"), pillow(data))


def test_cmyk_jpegs_are_read_with_and_without_the_inversion_of_adobe(photograph):
    inverted = encoded(photograph.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in inverted
    np.testing.assert_array_equal(decode_image(inverted, "x.jpg"), pillow(inverted))
    difference = np.abs(decode_image(inverted, "x.jpg").astype(int) - np.asarray(photograph))
    assert difference.mean() < 10
    start = inverted.index(b"\xff\xee")  # APP14 segment, the mark of Adobe
    plain = inverted[:start] + inverted[start + 16 :]
    np.testing.assert_array_equal(decode_image(plain, "x.jpg"), pillow(plain))


def test_16_bit_greyscale_keeps_its_high_byte_instead_of_saturating():
    grey = np.arange(0, 65536, 4, dtype=np.uint16).reshape(128, 128)
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert expected.max() == 255
    for suffix in (".png", ".tiff", ".pgm"):
        np.testing.assert_array_equal(decode_image(opencv(suffix, grey), suffix), expected, err_msg=suffix)
    big_endian = encoded(Image.fromarray(grey), "TIFF", big_endian=True)
    np.testing.assert_array_equal(decode_image(big_endian, "x.tiff"), expected)


def test_16_bit_rgb_keeps_its_high_byte():
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    rgb = np.stack([grey, grey[::-1], grey.T], axis=2)
    for suffix in (".png", ".tiff", ".ppm"):
        difference = decode_image(opencv(suffix, rgb), suffix).astype(int) - (rgb >> 8)
        assert np.abs(difference).max() <= (suffix == ".ppm"), suffix  # Pillow rounds PPM


def test_12_bit_and_white_is_zero_tiffs_keep_their_brightness():
    tags = {258: 12, 262: 1}
    np.testing.assert_array_equal(
        decode_image(tiff(np.array([[0, 2048, 4095]]), tags), "x.tif")[0, :, 0], [0, 128, 255]
    )
    tags = {258: 16, 262: 0}
    values = np.array([[0, 32768, 65535]])
    np.testing.assert_array_equal(decode_image(tiff(values, tags), "x.tif")[0, :, 0], [255, 127, 0])


def tiff(values: np.ndarray, tags: dict[int, int]) -> bytes:
    """Return a greyscale TIFF of 12 or 16 bits in one strip."""
    (height, width), bits = values.shape, tags[258]
    rows = []
    for row in values:
        packed = "".join(f"{value:0{bits}b}" for value in row)
        if bits == 16:
            rows.append(row.astype("<u2").tobytes())
        else:
            packed += "0" * (-len(packed) % 8)
            rows.append(int(packed, 2).to_bytes(len(packed) // 8, "big"))
    pixels = b"".join(rows)
    entries = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(pixels), **tags}
    directory = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + b"\0\0\0\0"


def test_transparent_pixels_are_blended_with_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 1, 3], rgba[:, 2, 3] = 128, 255
    for suffix in (".png", ".webp", ".tiff"):
        options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()
        image = decode_image(opencv(suffix, rgba, *options), suffix)
        np.testing.assert_allclose(image[0], [[255, 255, 255], [227, 127, 127], [200, 0, 0]], atol=1)


def test_a_transparent_colour_becomes_white():
    stripes = Image.fromarray(np.array([[7, 90]], np.uint8))
    grey = encoded(stripes, "PNG", transparency=7)
    rgb = encoded(stripes.convert("RGB"), "PNG", transparency=(7, 7, 7))
    palette = stripes.copy()
    palette.putpalette([value for value in range(256) for _ in range(3)])
    palette = encoded(palette, "PNG", transparency=7)
    gif = encoded(stripes, "GIF", transparency=7)
    for data in (grey, rgb, palette, gif):
        np.testing.assert_array_equal(decode_image(data, "x")[0], [[255] * 3, [90] * 3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_as_by_pillow(photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(photograph, kind, exif=exif)
        image = decode_image(data, kind)
        assert is_image(image)
        np.testing.assert_array_equal(image, ImageOps.exif_transpose(Image.open(io.BytesIO(data))), err_msg=kind)


@pytest.mark.parametrize("order", "<>")
def test_an_orientation_is_read_in_both_byte_orders_and_in_any_type(photograph, order):
    for kind, value in (("HH", (1, 0)), ("HH", (6, 0)), ("I", (1,)), ("I", (6,))):
        entry = struct.pack(f"{order}HHHI{kind}", 1, 0x0112, {"HH": 3, "I": 4}[kind], 1, *value)
        exif = b"Exif\0\0" + {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8) + entry
        data = encoded(photograph, "JPEG", exif=exif + bytes(4))
        np.testing.assert_array_equal(decode_image(data, "x"), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def test_the_orientation_is_read_next_to_a_colour_profile_and_from_xmp(photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photograph, "JPEG", exif=exif, icc_profile=profile)
    assert decode_image(data, "x.jpg").shape == (120, 91, 3)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    data = encoded(photograph, "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(xmp)) + xmp + data[2:]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))  # Pillow reads it from XMP since 11.0
    np.testing.assert_array_equal(decode_image(data, "x.jpg"), expected)


def test_damaged_exif_and_unknown_orientations_are_ignored(photograph, files):
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40):
        data = encoded(photograph, "JPEG", quality=90, exif=exif)
        np.testing.assert_array_equal(decode_image(data, "x.jpg"), pillow(files["baseline.jpg"]))
    exif = Image.Exif()
    exif[0x0112] = 99
    data = encoded(photograph, "JPEG", quality=90, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "x.jpg"), pillow(files["baseline.jpg"]))


def test_the_content_decides_the_format_not_the_suffix(files, tmp_path):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(files["rgb.png"])
    np.testing.assert_array_equal(read_image(path), pillow(files["rgb.png"]))


def test_paths_may_be_strings_with_spaces_and_any_letters(files, tmp_path):
    path = tmp_path / "Ordner mit Bildern" / "Ä 猫 🐈.jpg"
    path.parent.mkdir()
    path.write_bytes(files["baseline.jpg"])
    np.testing.assert_array_equal(read_image(str(path)), read_image(path))


def test_the_first_frame_of_an_animation_is_read(photograph):
    frames = [photograph, ImageOps.invert(photograph)]
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(decode_image(data, kind), photograph, err_msg=kind)


def test_a_jpeg_with_extra_bytes_after_its_end_or_between_segments_is_read(files):
    data = files["restarts.jpg"]
    for rubbish in (b"\0" * 50, b"<html>", data[: len(data) // 2]):
        np.testing.assert_array_equal(decode_image(data + rubbish, "x.jpg"), pillow(data))
    marker = data.index(b"\xff\xd3")
    extraneous = data[:marker] + b"\x12\x34\x56" + data[marker:]
    assert decode_jpeg(extraneous) is None, "should be left to Pillow"
    np.testing.assert_array_equal(decode_image(extraneous, "x.jpg"), pillow(extraneous))


def test_a_large_photograph_is_read_without_warnings_and_a_decompression_bomb_is_an_error(monkeypatch, files):
    pixels = 120 * 91
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("baseline.jpg", "rgb.png"):
            monkeypatch.setattr(
                Image, "MAX_IMAGE_PIXELS", pixels - 1
            )  # Pillow warns above it, and fails above twice it
            assert is_image(decode_image(files[name], name))
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2 - 1)
            with pytest.raises(ImageError, match=rf"{name}: more than {pixels - 2} pixels.* scale it down"):
                decode_image(files[name], name)


# Errors


def test_an_image_cut_short_anywhere_is_an_error(files):
    for name, data in files.items():
        # The last two bytes of a GIF and of a CMYK JPEG hold no pixels and may be missing.
        last = len(data) - (2 if name in ("palette.gif", "cmyk.jpg") else 0)
        for end in (*range(1, last, len(data) // 60), *range(last - 24, last)):
            with pytest.raises(ImageError, match=name):
                decode_image(data[:end], name)
        for end in range(last, len(data)):
            np.testing.assert_array_equal(decode_image(data[:end], name), decode_image(data, name))


def test_a_jpeg_of_the_size_of_imagenet_cut_short_anywhere_is_an_error(photograph):
    data = encoded(photograph.resize((500, 375)), "JPEG", quality=97)
    for end in (*range(1000, len(data), len(data) // 40), *range(len(data) - 40, len(data))):
        with pytest.raises(ImageError, match="cut short"):
            decode_image(data[:end], "x.jpg")


def test_a_jpeg_cut_short_with_a_thumbnail_is_an_error(photograph):
    exif = Image.Exif()
    exif[0x0112] = 1
    thumbnail = encoded(photograph.resize((40, 30)), "JPEG")
    data = encoded(photograph, "JPEG", exif=exif.tobytes() + thumbnail)
    for end in range(len(data) // 2, len(data), 97):
        with pytest.raises(ImageError):
            decode_image(data[:end], "x.jpg")


def test_an_error_names_the_file_the_fault_and_the_remedy(files, tmp_path):
    cases = {
        "empty.jpg": (b"", "empty file.*download it again"),
        "page.jpg": (b"<!DOCTYPE html><html>", "not an image.*<!DOCTYPE html>.*convert it to JPEG or PNG"),
        "cut.jpg": (files["baseline.jpg"][:-900], "cut short or damaged.*truncated.*download it again"),
        "cut.png": (files["rgb.png"][:-900], "cut short.*download it again"),
        "float.tiff": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point.*convert it to 8 or 16-bit"),
        "lab.tiff": (encoded(Image.new("LAB", (4, 4)), "TIFF"), "CIELAB.*convert it"),
        "integer.tiff": (encoded(Image.new("I", (4, 4)), "TIFF"), "32-bit integers.*convert it"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=message) as error:
            read_image(path)
        assert str(path) in str(error.value)
        assert isinstance(error.value, InputError)


def test_a_folder_is_an_image_error_and_a_missing_file_a_file_not_found_error(tmp_path, files):
    with pytest.raises(ImageError, match="a folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such image file"):
        read_image(tmp_path / "nowhere.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="dangling"):
        read_image(tmp_path / "dangling.jpg")
    (tmp_path / "a.jpg").write_bytes(files["baseline.jpg"])
    with pytest.raises(ImageError, match="check path"):
        read_image(tmp_path / "a.jpg" / "b.jpg")


def test_a_file_without_read_permission_is_an_error(tmp_path, files, monkeypatch):
    path = tmp_path / "locked.jpg"
    path.write_bytes(files["baseline.jpg"])
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read every file

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"locked\.jpg: no permission.*chmod"):
        read_image(path)


def test_damaged_files_give_an_image_or_an_image_error(files):
    generator = random.Random(0)
    names = list(files)
    messages = []
    for attempt in range(600):
        name = names[attempt % len(names)]
        data = bytearray(files[name])
        for _ in range(generator.choice((1, 2, 8, 40))):
            # half of them in the header, where damage has the largest effect
            at = generator.randrange(min(len(data), generator.choice((120, len(data)))))
            match generator.randrange(3):
                case 0:
                    data[at] = generator.randrange(256)
                case 1:
                    del data[at : at + generator.randrange(20)]
                case 2:
                    data[at:at] = generator.randbytes(generator.randrange(1, 9))
        try:
            assert is_image(decode_image(bytes(data), f"{attempt}.image"))
        except ImageError as error:
            messages.append((f"{attempt}.image", str(error)))
    assert 100 < len(messages) < 600
    assert all(message.startswith(name) for name, message in messages)


def test_a_header_of_a_huge_image_is_an_error_before_memory_is_allocated():
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    png += struct.pack(">I", 0) + b"IEND\xaeB`\x82"
    with pytest.raises(ImageError, match="scale it down"):
        decode_image(png, "bomb.png")


# Finding images


def test_images_are_found_by_suffix_in_all_subfolders_and_sorted_by_path(tmp_path):
    names = ["b/2.JPG", "b/10.png", "a.jpg", "a/z/deep.webp", "a-b/x.jpeg", "ä ö/猫.TIFF", "b.gif"]
    others = ["notes.txt", "a/labels.csv", "jpg", ".hidden.jpg", "a/._z.jpg", ".cache/x.jpg", "a/jpg.tar"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, left_out = find_images(tmp_path)
    assert left_out == {".txt": 1, ".csv": 1, "": 1, ".tar": 1}
    assert found == sorted(tmp_path / name for name in names)
    assert all(isinstance(path, Path) for path in found)
    assert find_images(str(tmp_path)).images == found


def test_linked_folders_are_searched_once_and_cycles_of_links_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "ring").symlink_to(root, target_is_directory=True)
    assert find_images(root).images == [root / "cats" / "1.jpg"]


def test_a_folder_without_images_gives_an_empty_list(tmp_path):
    assert find_images(tmp_path).images == []


def test_searching_a_missing_folder_or_a_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match="give the folder"):
        find_images(tmp_path / "a.jpg")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_read_and_turned_upright(tmp_path, orientation):
    assert_upright(tmp_path / "photo.avif", orientation)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_read_and_turned_upright_with_pillow_heif(tmp_path, orientation):
    pytest.importorskip("pillow_heif")
    assert_upright(tmp_path / "photo.HEIC", orientation)


def assert_upright(path, orientation):
    """Assert that an image of four colours is found, read and turned as Pillow turns the same JPEG."""
    colours = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [255, 255, 0]]], np.uint8)
    image = Image.fromarray(colours.repeat(32, axis=0).repeat(48, axis=1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = io.BytesIO()
    for file in (path, jpeg):
        image.save(file, format="JPEG" if file is jpeg else None, quality=90, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(jpeg)))
    assert find_images(path.parent) == ([path], {})
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found[8::16, 8::16].astype(int) - expected[8::16, 8::16]).max() < 20


def test_heic_without_pillow_heif_is_counted_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "IMAGE_SUFFIXES", images.IMAGE_SUFFIXES - {".heic"})
    (tmp_path / "photo.HEIC").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no images \(it has 1 \.heic; HEIC files are read with pip install"):
        expand([str(tmp_path)])


def test_an_image_without_suffix_is_found_by_its_content(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo", format="PNG")
    (tmp_path / "readme").write_text("PNG")
    assert find_images(tmp_path) == ([tmp_path / "photo"], {"": 1})
    assert image_format(tmp_path / "photo") == "PNG"


# Resizing and tensors


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((375, 500), (224, 224)),  # height and width
        ((375, 500), (256, 341)),
        ((90, 60), (224, 224)),
        ((1500, 2000), (224, 300)),
        ((100, 300), (200, 100)),
        ((1, 1), (3, 5)),
        ((50, 50), (1, 1)),
    ],
)
def test_resized_pixels_equal_pillows_antialiased_bilinear_within_1(photograph, size, target):
    noise = np.random.default_rng(0).integers(-40, 40, (*size, 3))
    image = (np.asarray(photograph.resize(size[::-1])) + noise).clip(0, 255).astype(np.uint8)
    expected = Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR)
    resized = resize(image, *target)
    assert is_image(resized)
    difference = np.abs(resized.astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert difference.mean() < 0.05


def test_resizing_accepts_views_and_returns_an_image_of_the_same_size_unchanged(photograph):
    image = np.array(photograph)
    for view in (image[5:80, 10:90], image[:, ::-1], image[::2]):
        np.testing.assert_array_equal(resize(view, 64, 48), resize(view.copy(), 64, 48))
        together = resize(np.stack([view, view[::-1]]), 64, 48)
        np.testing.assert_array_equal(together, [resize(view, 64, 48), resize(view[::-1], 64, 48)])
    assert resize(image, 91, 120) is image


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5), (37, 53), (224, 224)])
def test_normalised_tensors_equal_albumentations_within_1e_6(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = A.Compose([A.Normalize(MEAN, STD), ToTensorV2()])(image=image)["image"]
    tensor = normalise(to_planes(image), MEAN, STD)
    assert tensor.shape == (3, *size)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    batch = normalise(torch.stack([to_planes(image)] * 2), MEAN, STD, torch.float64)
    torch.testing.assert_close(batch[1].float(), expected, rtol=0, atol=1e-6)
    batch = to_batch([image, image[::-1]], MEAN, STD)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack([tensor, tensor.flip(1)]))


def test_planes_of_a_view_are_correct_and_share_no_memory():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for view in (image[3:20, 5:30], image[:, ::-1], image[::2], image.transpose(1, 0, 2), image[..., ::-1]):
        np.testing.assert_array_equal(to_planes(view).numpy(), view.transpose(2, 0, 1))
    planes = to_planes(image)
    planes.zero_()
    assert image.max() > 0


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_the_error_for_an_array_that_is_not_an_rgb_image_has_its_shape_and_type(image):
    with pytest.raises(InputError, match=r"\(4, 4.*leave out Normalize"):
        to_planes(image)
