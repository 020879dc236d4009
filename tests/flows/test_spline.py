r"""Laws of the rational-quadratic spline and of the affine map; zuko's are the oracles."""

from __future__ import annotations

import pytest
import torch
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from calosim.flows.spline import SLOPE, affine, rqs

BOUND = 3.0
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64 against another order of the same operations
SINGLE = {"rtol": 1e-3, "atol": 1e-4}  # float32, at slopes up to 1 / SLOPE


def oracle(phi: torch.Tensor, bins: int) -> MonotonicRQSTransform:
    return MonotonicRQSTransform(*phi.transpose(-1, -2).split([bins, bins, bins - 1], dim=-1), bound=BOUND)


def drawn(bins: int, scale: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(bins)
    phi = torch.randn(7, 3 * bins - 1, 40, dtype=dtype) * scale
    return phi.requires_grad_(), (torch.randn(7, 40, dtype=dtype) * 2).requires_grad_()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 4, 8])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_values_derivatives_and_gradients_equal_zuko(bins: int, scale: float, inverse: bool) -> None:
    phi, x = drawn(bins, scale)
    reference = oracle(phi, bins)
    if inverse:
        # Refined by one Newton step, because zuko's root itself loses digits on steep bins.
        expected = reference._inverse(x)
        y, ladj = reference.call_and_ladj(expected)
        expected = expected - (y - x) * (-ladj).exp()
        expected_ladj = -reference.call_and_ladj(expected)[1]
    else:
        expected, expected_ladj = reference.call_and_ladj(x)
    y, ladj = rqs(phi, x, BOUND, inverse)
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(ladj, expected_ladj, **EXACT)

    if inverse:
        expected = reference._inverse(x)
        expected_ladj = -reference.call_and_ladj(expected)[1]
    a, b = torch.randn_like(y), torch.randn_like(y)
    ours = torch.autograd.grad((a * y + b * ladj).sum(), (phi, x))
    theirs = torch.autograd.grad((a * expected + b * expected_ladj).sum(), (phi, x))
    for mine, other in zip(ours, theirs, strict=True):
        scale_of = other.abs().max()
        torch.testing.assert_close(mine / scale_of, other / scale_of, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 5])
def test_gradcheck(bins: int, inverse: bool) -> None:
    torch.manual_seed(0)
    phi = torch.randn(3, 3 * bins - 1, 6, dtype=torch.float64, requires_grad=True)
    x = (torch.randn(3, 6, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, v: rqs(p, v, BOUND, inverse), (phi, x))


@pytest.mark.parametrize("inverse", [False, True])
def test_the_affine_map_and_its_gradients_equal_zuko(inverse: bool) -> None:
    torch.manual_seed(0)
    phi = (torch.randn(7, 2, 40, dtype=torch.float64) * 3).requires_grad_()
    x = (torch.randn(7, 40, dtype=torch.float64) * 20).requires_grad_()
    reference = MonotonicAffineTransform(*phi.unbind(-2), slope=SLOPE)
    expected, expected_ladj = (reference.inv if inverse else reference).call_and_ladj(x)
    y, ladj = affine(phi, x, inverse)
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(ladj, expected_ladj, **EXACT)
    torch.testing.assert_close(affine(phi, y, not inverse)[0], x, **EXACT)
    assert torch.autograd.gradcheck(lambda p, v: affine(p, v, inverse), (phi[:2, :, :3], x[:2, :3]))


@pytest.mark.parametrize("inverse", [False, True])
def test_at_knots_at_the_bound_and_outside(inverse: bool) -> None:
    phi, _ = drawn(4, 1.0)
    reference = oracle(phi.detach(), 4)
    knots = reference.vertical if inverse else reference.horizontal
    images = reference.horizontal if inverse else reference.vertical
    for k in range(knots.shape[-1]):
        y, ladj = rqs(phi.detach(), knots[..., k], BOUND, inverse)
        torch.testing.assert_close(y, images[..., k], **EXACT)
        slope = reference.derivatives[..., k].log()
        torch.testing.assert_close(ladj, -slope if inverse else slope, **EXACT)

    outside = torch.tensor([-1e30, -100.0, -BOUND, BOUND, 100.0, 1e30], dtype=torch.float64).requires_grad_()
    some = phi[0, :, :6].detach().requires_grad_()
    y, ladj = rqs(some, outside, BOUND, inverse)
    assert torch.equal(y, outside)
    assert torch.equal(ladj, torch.zeros_like(ladj))
    grad_phi, grad_x = torch.autograd.grad((y + ladj).sum(), (some, outside))
    assert torch.equal(grad_x, torch.ones_like(grad_x))
    assert torch.equal(grad_phi, torch.zeros_like(grad_phi))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e20])
@pytest.mark.parametrize("inverse", [False, True])
def test_no_gradient_is_nan(dtype: torch.dtype, scale: float, inverse: bool) -> None:
    torch.manual_seed(1)
    phi = (torch.randn(50, 23, 60) * scale).to(dtype).requires_grad_()
    x = torch.cat((torch.randn(48, 60) * 8, torch.full((1, 60), 14.0), torch.full((1, 60), -14.0))).requires_grad_()
    y, ladj = rqs(phi, x, 14.0, inverse)
    assert y.dtype == torch.float32
    for tensor in (y, ladj, *torch.autograd.grad((y * torch.randn_like(y) + ladj).sum(), (phi, x))):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_round_trip_and_monotony_in_single_precision(scale: float) -> None:
    phi, x = drawn(8, scale, torch.float32)
    y, ladj = rqs(phi.detach(), x.detach(), BOUND)
    back, ladj_back = rqs(phi.detach(), y, BOUND, inverse=True)
    again, _ = rqs(phi.detach(), back, BOUND)
    torch.testing.assert_close(again, y, **SINGLE)
    if scale <= 1:
        torch.testing.assert_close(back, x.detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ladj_back, -ladj, rtol=1e-2, atol=1e-2)
    grid = torch.linspace(-4, 4, 500).expand(23 * 40, 500).T[:, :40].contiguous()
    values, _ = rqs(phi[:1].detach().expand(500, -1, -1), grid, BOUND)
    assert (values.diff(dim=0) >= -1e-6).all()
