import pytest
import torch

from tests.conftest import reference_state_dict


@pytest.fixture(scope="session")
def authors() -> dict[str, torch.Tensor]:
    """The reference checkpoint of 26m under the authors' names."""
    return reference_state_dict("mobile_former_26m")[1]
