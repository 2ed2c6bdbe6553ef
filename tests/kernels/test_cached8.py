"""cached8: keys and values at 8 bits and back."""

import pytest
import torch

from minilava_kernels.cached8 import BYTES, SIZE, pack, row_bytes, unpack


@pytest.mark.parametrize("dim", [2, 31, 32, 64, 72])
@pytest.mark.parametrize("largest", [1e-25, 1.0, 127.0, 3e38])
def test_no_value_is_off_by_more_than_half_a_step(dim, largest):
    x = torch.randn(5, 3, dim).clamp(-4, 4) * (largest / 4)
    packed = pack(x)
    assert packed.dtype == torch.int8 and packed.shape == (5, 3, row_bytes(dim))
    back = unpack(packed, dim)
    for first in range(0, dim, SIZE):
        group, made = x[..., first : first + SIZE], back[..., first : first + SIZE]
        step = group.abs().amax(-1, keepdim=True) / 127 * (1 + 2**-7)  # of a scale rounded up to bfloat16
        assert ((group - made).abs() <= step / 2 * (1 + 1e-6)).all()


def test_what_a_scale_cannot_say():
    """Zeros and what is smaller than any scale are zeros; what is not finite spoils its group and no other."""
    x = torch.ones(2, 3 * SIZE)
    x[0, :SIZE], x[1, :SIZE] = 0, 1e-36
    x[0, SIZE], x[1, 2 * SIZE] = float("inf"), float("nan")
    back = unpack(pack(x), 3 * SIZE).view(2, 3, SIZE)
    assert not back[:, 0].any()
    assert back[0, 1].isnan().all() and back[1, 2].isnan().all()
    torch.testing.assert_close(back[0, 2], torch.ones(SIZE), rtol=0.005, atol=0)
    torch.testing.assert_close(back[1, 1], torch.ones(SIZE), rtol=0.005, atol=0)


def test_the_bytes_of_a_group():
    """The scale first, low byte first: 127 * 2^-3 at a scale of 2^-3, whose bfloat16 is 0x3e00."""
    x = torch.zeros(SIZE)
    x[0], x[1], x[2] = 127 / 8, -127 / 8, 0.1875
    assert pack(x).tolist() == [0, 0x3E, 127, -127, 2, *[0] * (BYTES - 5)]
