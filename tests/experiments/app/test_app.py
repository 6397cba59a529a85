"""``experiments.app``: the page, its answers, and its errors for bad files."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

from experiments.app.__main__ import main
from experiments.app.answer import answer
from experiments.app.page import build_page, serve
from experiments.attention.look import load_predictor
from mobile_former import InputError
from tests.conftest import ROOT

BROWSER = shutil.which("chromium")


def noise(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictors(checkpoints):
    return {name: load_predictor(path) for name, path in checkpoints.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One readable image and several that cannot be read."""
    folder = tmp_path_factory.mktemp("files")
    image = Image.fromarray(noise(60, 90))
    image.save(folder / "good.jpg")
    (folder / "text.jpg").write_text("no image <b>at all</b>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:2000])
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return folder


def test_an_answer_shows_the_image_its_classes_and_the_attention(predictors, files):
    given = answer(predictors["classifier"], files / "good.jpg")
    assert given.problem == ""
    assert given.size == (90, 60)
    assert set(given.probabilities()) == {"猫", "a$b_{c}$", "собака"}
    assert sum(given.probabilities().values()) == pytest.approx(1)
    assert given.picture().width == 640  # enlarged, as by predict
    for block in ("backbone2", "classifier"):
        assert np.asarray(given.attention(block)).std() > 5


@pytest.mark.parametrize("name", ["detector", "retinanet"])
def test_an_answers_table_has_boxes_in_pixels_of_the_image(predictors, name, tmp_path):
    Image.fromarray(noise(1200, 2048)).save(tmp_path / "large.png")
    given = answer(predictors[name], tmp_path / "large.png")
    assert given.image.shape == (600, 1024, 3)
    width, height = given.picture(0).size
    assert width == 1024
    assert height >= 600  # many boxes have a legend below the image
    rows = given.rows(0)
    assert rows
    for label, score, left, top, right, bottom in rows:
        assert label in predictors[name].class_names
        assert 0 <= score <= 1
        assert 0 <= left <= right <= 2048
        assert 0 <= top <= bottom <= 1200
    assert max(row[4] for row in rows) > 1024
    assert given.rows(1.0) == []
    if name == "detector":
        assert given.attention("boxes", 0).width > 500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.jpg", "text.jpg: not an image in a supported format"),
        ("empty.png", "empty.png: an empty file"),
        ("cut.jpg", "cut.jpg: cut short or damaged"),
        ("huge.png", "huge.png: more than 178956970 pixels, the most that are read"),
        ("missing.png", "missing.png: no such image file"),
    ],
)
def test_the_error_of_an_unreadable_file_names_the_file_without_its_folder(predictors, files, name, message):
    given = answer(predictors["classifier"], files / name)
    assert given.problem.startswith(message)
    assert str(files) not in given.problem
    assert given.prediction is None


def test_a_rotated_photograph_is_turned_upright(predictors, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(60, 90)).save(tmp_path / "turned.jpg", exif=exif)
    assert answer(predictors["classifier"], tmp_path / "turned.jpg").size == (60, 90)


def test_images_of_any_mode_are_answered(predictors, tmp_path):
    image = Image.fromarray(noise(60, 90))
    image.convert("RGBA").save(tmp_path / "transparent.png")
    image.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(noise(60, 90)[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    image.convert("CMYK").save(tmp_path / "print.jpg")
    for path in sorted(tmp_path.iterdir()):
        assert answer(predictors["classifier"], path).size == (90, 60), path


def test_only_the_page_imports_gradio():
    named = [
        path
        for package in ("mobile_former", "classification", "detection", "experiments")
        for path in (ROOT / package).rglob("*.py")
        if "gradio" in path.read_text()
    ]
    assert named == [ROOT / "experiments" / "app" / "page.py"]


def test_without_gradio_the_error_says_how_to_install_it(predictors, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=re.escape("pip install -c constraints.txt -e '.[app]'")):
        build_page(predictors["classifier"])


def test_an_invalid_port_is_an_error(checkpoints, monkeypatch):
    monkeypatch.setattr("sys.argv", ["app", "--ckpt", str(checkpoints["classifier"]), "--port", "70000"])
    with pytest.raises(InputError, match="--port is 70000"):
        main()


def test_the_command_listens_on_loopback_by_default(checkpoints, predictors, monkeypatch):
    served = []

    class StoppedError(Exception):
        pass

    def stop(page, host, port):
        served.append((host, port))
        raise StoppedError

    monkeypatch.setattr("experiments.app.__main__.load_predictor", lambda path: predictors["classifier"])
    monkeypatch.setattr("experiments.app.__main__.build_page", lambda predictor: None)
    monkeypatch.setattr("experiments.app.__main__.serve", stop)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    for options in ([], ["--host", "0.0.0.0", "--port", "8000"]):
        monkeypatch.setattr("sys.argv", ["app", "--ckpt", "best.ckpt", *options])
        with pytest.raises(StoppedError):
            main()
    assert served == [("127.0.0.1", None), ("0.0.0.0", 8000)]


def test_the_server_fetches_no_addresses(predictors):
    gradio = pytest.importorskip("gradio")
    page = build_page(predictors["classifier"])
    (file,) = (block for block in page.blocks.values() if isinstance(block, gradio.File))
    for address in ("http://127.0.0.1/photo.jpg", "HTTPS://example.com/photo.jpg"):
        with pytest.raises(gradio.Error, match="addresses are not fetched"):
            asyncio.run(file.async_move_resource_to_block_cache(address))


def accepts(host, port):
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


def test_the_page_listens_on_loopback_and_calls_nothing_else(predictors):
    pytest.importorskip("gradio")
    page = build_page(predictors["classifier"])
    address = serve(page, "127.0.0.1", None)
    port = int(re.search(r":(\d+)/", address)[1])
    try:
        assert accepts("127.0.0.1", port)
        if sys.platform == "linux":  # all of 127.0.0.0/8 is this machine
            assert not accepts("127.0.0.2", port)
        with urllib.request.urlopen(address) as response:
            text = response.read().decode()
            policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "fonts.googleapis.com" not in text
        assert not page.analytics_enabled
        with pytest.raises(InputError, match="give another --host or --port"):
            serve(build_page(predictors["classifier"]), "127.0.0.1", port)
        other = build_page(predictors["classifier"])
        assert serve(other, "127.0.0.1", None) != address  # the next free port
        other.close(verbose=False)
    finally:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def served(checkpoints, tmp_path_factory):
    """Start the command as a user would, for a classifier and a detector; give the addresses of the pages."""
    pytest.importorskip("gradio")
    uploads = tmp_path_factory.mktemp("tmp")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(uploads)}
    running = {}
    for name in ("classifier", "detector"):
        command = [sys.executable, "-m", "experiments.app", "--ckpt_path", str(checkpoints[name])]
        running[name] = subprocess.Popen(command, cwd=uploads, env=environment, stdout=subprocess.PIPE, text=True)
    addresses = {}
    for name, process in running.items():
        addresses[name] = re.match(r"open (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops\)", process.stdout.readline())[1]
    yield addresses
    for process in running.values():
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    assert not list(uploads.glob("mobile-former-app-*"))  # uploaded files are deleted


@pytest.fixture
def tab(request):
    """A browser's page; requests to other servers fail the test."""
    if BROWSER is None:
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    requested = []
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=BROWSER, args=flags)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)
        tab.on("request", lambda each: requested.append(each.url))
        yield tab
        browser.close()
    assert requested
    assert not [url for url in requested if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]


def drop(tab, path):
    """Give the page a file and wait for its answer or error; return the message."""
    clear = tab.locator("#file button[aria-label='Clear']")
    if clear.count():
        clear.click()
        tab.locator("#message .times, #message .problem").wait_for(state="detached")
    tab.locator("#file input[type=file]").set_input_files(path)
    tab.locator("#message .times, #message .problem:not(:has-text('There is no image'))").wait_for()
    return tab.locator("#message").inner_text()


def loaded(tab, place):
    """Return the width in pixels of a picture on the page."""
    tab.locator(f"{place} img").wait_for()
    tab.wait_for_function(f"() => document.querySelector('{place} img').naturalWidth > 0")
    return tab.evaluate(f"() => document.querySelector('{place} img').naturalWidth")


@pytest.mark.slow
def test_an_uploaded_image_is_classified_and_its_attention_drawn_block_by_block(served, tab, files):
    tab.goto(served["classifier"])
    tab.locator("#block label", has_text="backbone3").click()
    assert "There is no image" in tab.locator("#message .problem").inner_text()
    tab.locator("#block label", has_text="backbone2").click()
    message = drop(tab, files / "good.jpg")
    assert re.search(r"90x60 pixels\. Model: \d+ ms\. In total, .*: \d+ ms", message)
    result = tab.locator("#result").inner_text()
    assert all(name in result for name in ("猫", "a$b_{c}$", "собака"))
    assert loaded(tab, "#picture") == 640
    loaded(tab, "#attention")
    first = tab.locator("#attention img").get_attribute("src")
    tab.locator("#block label", has_text="classifier").click()
    tab.wait_for_function("src => document.querySelector('#attention img').getAttribute('src') !== src", arg=first)


@pytest.mark.slow
def test_bad_files_are_reported_on_the_page_and_the_next_good_one_is_answered(served, tab, files):
    tab.goto(served["classifier"])
    assert "text.jpg: not an image in a supported format" in drop(tab, files / "text.jpg")
    assert "<b>" in tab.locator("#message").inner_text()  # as text, not as markup
    assert "empty.png: an empty file" in drop(tab, files / "empty.png")
    assert "cut.jpg: cut short or damaged" in drop(tab, files / "cut.jpg")
    assert "huge.png: more than 178956970 pixels" in drop(tab, files / "huge.png")
    assert tab.locator("#picture img").count() == 0
    assert "90x60 pixels" in drop(tab, files / "good.jpg")
    assert loaded(tab, "#picture") == 640


@pytest.mark.slow
def test_a_photograph_of_twelve_megapixels_is_answered(served, tab, tmp_path):
    Image.fromarray(noise(300, 400)).resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg")
    tab.goto(served["classifier"])
    assert "4000x3000 pixels" in drop(tab, tmp_path / "photo.jpg")
    assert loaded(tab, "#picture") == 1024


@pytest.mark.slow
def test_a_detectors_boxes_are_listed_in_a_table_and_follow_the_score_threshold(served, tab, files):
    tab.goto(served["detector"])
    assert "90x60 pixels" in drop(tab, files / "good.jpg")
    assert loaded(tab, "#picture") == 640
    assert not re.search("猫|собака|a\\$b", tab.locator("#result").inner_text())
    tab.locator("#score input[type=number]").fill("0")
    tab.locator("#score input[type=number]").press("Enter")
    tab.wait_for_function("() => /猫|собака|a\\$b/.test(document.querySelector('#result').innerText)")
    first = tab.locator("#attention img").get_attribute("src")
    tab.locator("#block label", has_text="boxes").click()
    tab.wait_for_function("src => document.querySelector('#attention img').getAttribute('src') !== src", arg=first)
