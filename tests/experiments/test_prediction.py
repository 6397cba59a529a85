"""``python -m experiments.prediction``: predict against its model."""

import re

import cv2
import numpy as np
import pytest

from experiments.prediction import main


@pytest.mark.parametrize(("task", "name"), [("classification", "classifier"), ("detection", "retinanet")])
def test_the_rates_of_predict_and_of_its_model_are_compared(checkpoints, monkeypatch, tmp_path, capsys, task, name):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((40 + number, 60, 3), 99, np.uint8))
    options = ["--ckpt_path", str(checkpoints[name]), "--rounds", "1", "--most", "2"]
    monkeypatch.setattr("sys.argv", ["experiments.prediction", task, str(tmp_path), *options])
    main()
    *lines, last = capsys.readouterr().out.splitlines()
    predict, model = (int(re.fullmatch(r"\w+ +(\d+) µs of the processor per image", line)[1]) for line in lines)
    assert predict > model > 0
    assert float(re.match(r"2 images: predict has (\d\.\d\d) of the model's rate", last)[1]) < 1
