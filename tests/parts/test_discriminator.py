"""The patch discriminator is the published one, takes what it says it fits, and normalises as it is told."""

import pytest
import torch

from efface.parts.nn.discriminator import PatchDiscriminator


def test_it_has_the_published_size():
    with torch.device("meta"):
        net = PatchDiscriminator(4)
        assert sum(p.numel() for p in net.parameters()) == 2_767_553
        assert net(torch.empty(2, 4, 64, 64)).shape == (2, 1, 3, 3)


@pytest.mark.parametrize("size", [7, 8, 16, 17, 32, 64])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_what_fits_leaves_patches(blocks, size):
    net, x = PatchDiscriminator(2, (4,) * blocks, norm="none"), torch.zeros(1, 2, size, size + 3)
    if PatchDiscriminator.fits(blocks, size):
        assert min(net(x).shape) > 0
    else:
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 2, size, size))


@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("group", True), ("none", True)])
def test_only_a_batch_norm_sees_the_others_of_a_batch(norm, alone):
    torch.manual_seed(0)
    net, x = PatchDiscriminator(2, (4, 6), norm), torch.randn(4, 2, 16, 16)
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5) == alone
