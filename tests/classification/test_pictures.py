import torch
from torch import nn

from classification.data.module import ClassificationData
from classification.pictures import draw_predictions
from mobile_former.training.run.figures import RIGHT, WRONG


def test_the_sheet_shows_predictions_and_marks_the_wrong_ones(image_folder, tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr("classification.pictures.image_sheet", lambda *args, **options: sheets.append((args, options)))
    data = ClassificationData(root=str(image_folder), image_size=32, num_workers=0)
    data.setup("validate")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 100.0, 0.0]))  # every image is "green"
    draw_predictions(model, data, tmp_path / "predictions.png")
    (((images, captions, path), options),) = sheets
    assert [image.shape for image in images] == [(32, 32, 3)] * 12
    assert captions == ["green  100%\nis blue"] * 4 + ["green  100%"] * 4 + ["green  100%\nis red"] * 4
    assert options["colours"] == [WRONG] * 4 + [RIGHT] * 4 + [WRONG] * 4
    assert path == tmp_path / "predictions.png"
