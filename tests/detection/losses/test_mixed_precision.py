import torch

from detection.losses.mixed_precision import at_least_float32, without_autocast


def test_half_precision_becomes_float32_and_float64_is_kept():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert at_least_float32(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_products_keep_their_dtype_within_the_context():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
