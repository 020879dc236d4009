r"""Monotonic rational-quadratic splines with linear tails and hand-derived gradients.

The spline maps :math:`[-B, B]` onto itself and is the identity outside. Its parameters are the :math:`K` logits of the
bin widths, the :math:`K` logits of the bin heights and the :math:`K - 1` log-derivatives at the inner knots, stacked
along one axis *before* the features, so that every operation runs over contiguous features.

With :math:`\xi = (x + B) / 2B`, the bin's lower edges :math:`a, b` and sizes :math:`p, q` in units of the domain,
:math:`\theta = (\xi - a) / p`, :math:`s = q / p` and the derivatives :math:`d_0, d_1` at its two knots,

.. math::
    \eta = b + q \frac{N}{D}, \quad
    N = s \theta^2 + d_0 \theta (1 - \theta), \quad
    D = s + (d_0 + d_1 - 2 s) \theta (1 - \theta), \quad
    \frac{\mathrm{d} \eta}{\mathrm{d} \xi} = s^2 \frac{M}{D^2}, \quad
    M = d_1 \theta^2 + 2 s \theta (1 - \theta) + d_0 (1 - \theta)^2 .

The gradient of the inverse is that of the forward map at fixed :math:`\xi` by the implicit function theorem, so both
directions share one adjoint.

References:
    | Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    | The bounded parameters are those of :class:`zuko.transforms.MonotonicRQSTransform`, the oracle of the tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["SLOPE", "rqs", "rqs_adjoint", "rqs_apply"]

#: The smallest slope of a spline, as in zuko. Bin logits are bounded by ``-log(SLOPE) / 2``, so that the softmax needs
#: no maximum subtracted.
SLOPE = 1e-3
_LOGIT = 2 / -math.log(SLOPE)
_LOG_DERIVATIVE = 1 / -math.log(SLOPE)


def rqs_apply(
    phi: Tensor, x: Tensor, bound: float, inverse: bool = False, ladj: bool = True
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    r"""Evaluates the spline or its inverse, without autograd.

    Args:
        phi: The unconstrained parameters, with shape :math:`(*, 3K - 1, C)`; bfloat16 is computed in the type of `x`.
        x: The inputs :math:`x`, or :math:`y` if `inverse`, with shape :math:`(*, C)`.
        bound: The bound :math:`B`.
        inverse: Whether to evaluate :math:`f^{-1}`.
        ladj: Whether to return the log-derivative.

    Returns:
        The outputs :math:`(*, C)`, the log-derivative of the evaluated direction :math:`(*, C)` or :py:`None`, and
        what :func:`rqs_adjoint` needs.
    """
    bins = (phi.shape[-2] + 1) // 3
    phi = phi.to(x.dtype)
    logits = phi[..., : 2 * bins, :]
    e = logits / torch.add(1, logits.abs(), alpha=_LOGIT)
    e = e.exp_().unflatten(-2, (2, bins))  # (*, 2, K, C): widths, heights
    edges = e.cumsum(-2)
    total = edges[..., -1, :]  # (*, 2, C)

    inside = x.abs() < bound
    searched = 1 if inverse else 0
    t = (x / (2 * bound) + 0.5).clamp(0, 1)
    u = t * total[..., searched, :]
    k = (edges[..., searched, :-1, :] < u.unsqueeze(-2)).sum(-2, keepdim=True)  # (*, 1, C)

    index = k.unsqueeze(-3).expand(*e.shape[:-2], 1, e.shape[-1])
    size = e.gather(-2, index).squeeze(-2)
    edge = edges.gather(-2, index).squeeze(-2) - size
    p, q = (size / total).unbind(-2)
    s = q / p

    # The outermost knots have derivative one; index -1 and K - 1 are clamped and then overruled.
    ends = torch.cat((k - 1, k), dim=-2)
    inner = (ends >= 0) & (ends < bins - 1)
    ends = ends.clamp(0, max(bins - 2, 0))
    raw = phi[..., 2 * bins :, :].gather(-2, ends) * inner if bins > 1 else torch.zeros_like(ends, dtype=x.dtype)
    d0, d1 = (raw / torch.add(1, raw.abs(), alpha=_LOG_DERIVATIVE)).exp_().unbind(-2)
    bend = d0 + d1 - 2 * s

    fraction = ((u - edge[..., searched, :]) / size[..., searched, :]).clamp(0, 1)
    if inverse:
        b = d0 - fraction * bend
        discriminant = b * b + 4 * s * fraction * (s - b)
        theta = (2 * s * fraction / (b + discriminant.clamp_(min=0).sqrt_())).clamp_(0, 1)
        start, width, value = edge[..., 0, :] / total[..., 0, :], p, theta
        tt = theta * (1 - theta)
    else:
        theta = fraction
        tt = theta * (1 - theta)
        start, width = edge[..., 1, :] / total[..., 1, :], q
        value = (s * theta * theta + d0 * tt) / (s + bend * tt)
    y = torch.where(inside, (start + width * value) * (2 * bound) - bound, x)

    log_derivative = None
    if ladj:
        slope = s / (s + bend * tt)
        m = d1 * theta * theta + 2 * s * tt + d0 * (1 - theta) ** 2
        log_derivative = (slope * slope * m).log_() * inside
        if inverse:
            log_derivative = -log_derivative
    return y, log_derivative, (phi, e, total, k, theta, p, s, d0, d1, inside)


def rqs_adjoint(
    saved: tuple[Tensor, ...], grad_y: Tensor | None, grad_ladj: Tensor | None, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Pulls gradients back through :func:`rqs_apply`.

    Args:
        saved: The last output of :func:`rqs_apply`.
        grad_y: The gradient of the outputs, with shape :math:`(*, C)`, or :py:`None`.
        grad_ladj: The gradient of the log-derivative, with shape :math:`(*, C)` or broadcast to it, or :py:`None`.
        bound: The bound :math:`B`.
        inverse: The direction that was evaluated.

    Returns:
        The gradients of `x`, :math:`(*, C)`, and of `phi`, :math:`(*, 3K - 1, C)`.
    """
    phi, e, total, k, theta, p, s, d0, d1, inside = saved
    bins = e.shape[-2]
    rest = 1 - theta
    tt, theta2 = theta * rest, theta * theta
    bend = d0 + d1 - 2 * s
    r = 1 / (s + bend * tt)
    m = d1 * theta2 + 2 * s * tt + d0 * rest * rest
    g = (s * theta2 + d0 * tt) * r
    slope = s * s * m * r * r
    q = s * p

    zero = torch.zeros((), dtype=theta.dtype, device=theta.device)
    lam = zero if grad_ladj is None else torch.where(inside, -grad_ladj if inverse else grad_ladj, zero)
    along = zero if grad_y is None else torch.where(inside, grad_y * (2 * bound), zero)
    l_theta = lam * (2 * (d1 * theta + s * (1 - 2 * theta) - d0 * rest) / m - 2 * bend * (1 - 2 * theta) * r)
    if inverse:  # implicit function theorem: the adjoint of eta at fixed xi
        pulled = (along + l_theta / p) / slope
        eta = -pulled
        theta_bar = eta * p * slope + l_theta
    else:
        eta = along
        theta_bar = eta * p * slope + l_theta
        pulled = theta_bar / p
    grad_x = torch.where(inside, pulled / (2 * bound), zero if grad_y is None else grad_y)

    eq = eta * q * r
    s_bar = eq * (theta2 - g * (1 - 2 * tt)) + lam * (2 / s + 2 * tt / m - 2 * (1 - 2 * tt) * r)
    d0_bar = eq * tt * (1 - g) + lam * (rest * rest / m - 2 * tt * r)
    d1_bar = lam * (theta2 / m - 2 * tt * r) - eq * tt * g

    # Adjoints of the lower edges (a, b) and of the sizes (p, q), both (*, 2, C) in the order width, height.
    edge_bar = torch.stack((-theta_bar / p, eta.expand_as(p)), dim=-2)
    size_bar = torch.stack((-(theta * theta_bar + s * s_bar) / p, eta * g + s_bar / p), dim=-2)

    # Softmax: each bin below k carries the edge's adjoint, bin k the size's, minus their mean under the softmax.
    index = k.unsqueeze(-3)
    steps = torch.arange(bins, device=k.device).unsqueeze(-1)
    gamma = torch.where(steps < index, edge_bar.unsqueeze(-2), zero)
    gamma.scatter_(-2, index.expand(*e.shape[:-2], 1, e.shape[-1]), size_bar.unsqueeze(-2))
    weights = e / total.unsqueeze(-2)
    gamma *= weights
    gamma -= weights * gamma.sum(-2, keepdim=True)

    grad_phi = torch.empty_like(phi)
    logits = phi[..., : 2 * bins, :]
    damp = torch.add(1, logits.abs(), alpha=_LOGIT)
    torch.div(gamma.flatten(-3, -2), damp.square_(), out=grad_phi[..., : 2 * bins, :])

    if bins > 1:
        grad_phi[..., 2 * bins :, :] = 0
        ends = torch.cat((k - 1, k), dim=-2)
        inner = (ends >= 0) & (ends < bins - 1)
        ends = ends.clamp(0, bins - 2)
        raw = phi[..., 2 * bins :, :].gather(-2, ends)
        both = torch.stack((d0_bar * d0, d1_bar * d1), dim=-2)
        both = both * inner / torch.add(1, raw.abs(), alpha=_LOG_DERIVATIVE) ** 2
        grad_phi[..., 2 * bins :, :].scatter_add_(-2, ends, both)
    return grad_x, grad_phi


class _RQS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, x: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
        y, ladj, saved = rqs_apply(phi, x, bound, inverse)
        ctx.save_for_backward(*saved)
        ctx.bound, ctx.inverse, ctx.dtype = bound, inverse, phi.dtype
        ctx.set_materialize_grads(False)
        assert ladj is not None
        return y, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x, grad_phi = rqs_adjoint(ctx.saved_tensors, grad_y, grad_ladj, ctx.bound, ctx.inverse)
        return grad_phi.to(ctx.dtype), grad_x, None, None


def rqs(phi: Tensor, x: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Evaluates the spline or its inverse, differentiably.

    Args:
        phi: The unconstrained parameters, with shape :math:`(*, 3K - 1, C)`.
        x: The inputs :math:`x`, or :math:`y` if `inverse`, with shape :math:`(*, C)`.
        bound: The bound :math:`B`.
        inverse: Whether to evaluate :math:`f^{-1}`.

    Returns:
        The outputs and the log-derivative of the evaluated direction, both with shape :math:`(*, C)`.

    Example:
        >>> phi, x = torch.randn(5, 23, 4), torch.randn(5, 4)
        >>> y, ladj = rqs(phi, x, bound=14.0)
        >>> torch.allclose(rqs(phi, y, bound=14.0, inverse=True)[0], x, atol=1e-4)
        True
    """
    return _RQS.apply(phi, x, bound, inverse)
