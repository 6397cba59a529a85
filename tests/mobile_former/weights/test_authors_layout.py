import pytest
import torch

import mobile_former
from mobile_former.weights.authors_layout import our_names
from tests.conftest import reference_state_dict
from tests.mobile_former.test_reference import STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_every_tensor_of_the_authors_has_its_place_in_the_model(stem):
    description, authors = reference_state_dict(stem)
    renamed = our_names(authors)
    model = mobile_former.MobileFormer.published(description["variant"])
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    assert len(renamed) == len(authors)
    assert renamed["backbone.tokens"] is authors["tokens.weight"]


def test_other_names_stay_as_they_are():
    state = {"backbone.tokens": torch.zeros(1), "stem.0.weight": torch.zeros(1)}
    assert our_names(state) == state
