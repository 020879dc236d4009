r"""Univariate maps with hand-derived gradients: rational-quadratic splines with linear tails, and affine maps.

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

The affine map is :math:`y = x e^a + b` on all of :math:`\mathbb{R}`, with a bounded :math:`a`. It shares the spline's interface.

References:
    | Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    | The bounded parameters are those of :class:`zuko.transforms.MonotonicRQSTransform` and
      :class:`zuko.transforms.MonotonicAffineTransform`, the oracles of the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["SLOPE", "affine", "affine_adjoint", "affine_apply", "rqs", "rqs_adjoint", "rqs_apply"]

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
    damp = logits.abs().mul_(_LOGIT).add_(1)
    e = (logits / damp).exp_().unflatten(-2, (2, bins))  # (*, 2, K, C): widths, heights
    inside = x.abs() < bound
    t = (x / (2 * bound)).add_(0.5).clamp_(0, 1)
    # The outermost knots have derivative one.
    knots = F.pad(phi[..., 2 * bins :, :], (0, 0, 1, 1))
    u, k, total, edge, size, (raw0, raw1) = (_search_unrolled if _unrolled() else _search)(e, knots, t, int(inverse))
    p, q = size[0] / total[0], size[1] / total[1]
    s = q / p
    damp0 = raw0.abs().mul_(_LOG_DERIVATIVE).add_(1)
    damp1 = raw1.abs().mul_(_LOG_DERIVATIVE).add_(1)
    d0, d1 = (raw0 / damp0).exp_(), (raw1 / damp1).exp_()
    bend = d0 + d1 - 2 * s

    fraction = ((u - edge[int(inverse)]) / size[int(inverse)]).clamp_(0, 1)
    if inverse:
        b = d0 - fraction * bend
        discriminant = b * b + 4 * s * fraction * (s - b)
        theta = (2 * s * fraction / (b + discriminant.clamp_(min=0).sqrt_())).clamp_(0, 1)
        start, width, value = edge[0] / total[0], p, theta
        tt = theta * (1 - theta)
    else:
        theta = fraction
        tt = theta * (1 - theta)
        start, width = edge[1] / total[1], q
        value = (s * theta * theta + d0 * tt) / (s + bend * tt)
    y = torch.where(inside, (start + width * value).mul_(2 * bound).sub_(bound), x)

    log_derivative = None
    if ladj:
        slope = s / (s + bend * tt)
        m = d1 * theta * theta + 2 * s * tt + d0 * (1 - theta) ** 2
        log_derivative = (slope * slope * m).log_() * inside
        if inverse:
            log_derivative = -log_derivative
    return y, log_derivative, (damp, e, k, *total, *edge, *size, theta, d0, d1, damp0, damp1, inside)


def _unrolled() -> bool:
    """Whether to loop over the bins: a compiler makes one pass of that, but each step costs a call otherwise."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _search(e: Tensor, knots: Tensor, t: Tensor, searched: int) -> tuple[Any, ...]:
    """Finds the bin of `t` in the widths (0) or heights (1).

    Returns:
        The scaled input, the bin, and pairs: the totals, the bin's lower edges, its sizes, and what is at its two knots.
    """
    edges = e.cumsum(-2)
    total = edges[..., -1, :]  # (*, 2, C)
    u = t * total[..., searched, :]
    k = (edges[..., searched, :-1, :] < u.unsqueeze(-2)).sum(-2, keepdim=True)  # (*, 1, C)
    index = k.unsqueeze(-3).expand(*e.shape[:-2], 1, e.shape[-1])
    size = e.gather(-2, index).squeeze(-2)
    edge = edges.gather(-2, index).squeeze(-2) - size
    ends = knots.gather(-2, torch.cat((k, k + 1), dim=-2))
    return u, k.squeeze(-2), total.unbind(-2), edge.unbind(-2), size.unbind(-2), ends.unbind(-2)


def _search_unrolled(e: Tensor, knots: Tensor, t: Tensor, searched: int) -> tuple[Any, ...]:
    """The same as :func:`_search` by one comparison per bin, without indices."""
    ends = knots.unbind(-2)
    bins = e.shape[-2]
    sizes = list(zip(*(side.unbind(-2) for side in e.unbind(-3)), strict=True))
    edges = [sizes[0]]  # upper edges
    for more in sizes[1:]:
        edges.append((edges[-1][0] + more[0], edges[-1][1] + more[1]))
    total = edges[-1]
    u = t * total[searched]
    k, zero = torch.zeros_like(t, dtype=torch.int32), torch.zeros_like(t)
    found = [zero, zero, *sizes[0], ends[0], ends[1]]
    for j in range(1, bins):
        beyond = edges[j - 1][searched] < u
        k = torch.where(beyond, j, k)
        there = (*edges[j - 1], *sizes[j], ends[j], ends[j + 1])
        found = [torch.where(beyond, a, b) for a, b in zip(there, found, strict=True)]
    return u, k, total, found[:2], found[2:4], found[4:]


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
    damp, e, k, total0, total1, edge0, edge1, size0, size1, theta, d0, d1, damp0, damp1, inside = saved
    bins = e.shape[-2]
    p, q = size0 / total0, size1 / total1
    s = q / p
    rest = 1 - theta
    tt, theta2 = theta * rest, theta * theta
    bend = d0 + d1 - 2 * s
    r = 1 / (s + bend * tt)
    m = d1 * theta2 + 2 * s * tt + d0 * rest * rest
    g = (s * theta2 + d0 * tt) * r
    slope = s * s * m * r * r

    zero = torch.zeros((), dtype=theta.dtype, device=theta.device)
    lam = zero if grad_ladj is None else torch.where(inside, -grad_ladj if inverse else grad_ladj, zero)
    along = zero if grad_y is None else torch.where(inside, grad_y * (2 * bound), zero)
    l_theta = lam * (2 * (d1 * theta + s * (1 - 2 * theta) - d0 * rest) / m - 2 * bend * (1 - 2 * theta) * r)
    # Of the inverse by the implicit function theorem: the adjoint of eta at fixed xi.
    eta = -(along + l_theta / p) / slope if inverse else along
    theta_bar = eta * p * slope + l_theta
    pulled = -eta if inverse else theta_bar / p
    grad_x = torch.where(inside, pulled / (2 * bound), zero if grad_y is None else grad_y)

    eq = eta * q * r
    s_bar = eq * (theta2 - g * (1 - 2 * tt)) + lam * (2 / s + 2 * tt / m - 2 * (1 - 2 * tt) * r)
    d0_bar = eq * tt * (1 - g) + lam * (rest * rest / m - 2 * tt * r)
    d1_bar = lam * (theta2 / m - 2 * tt * r) - eq * tt * g

    # Softmax: each bin below k carries the adjoint of the lower edge (a or b), bin k that of its size (p or q), minus
    # their mean under the softmax.
    cases = []
    for edge_bar, size_bar, edge, share, total in (
        (-theta_bar / p, -(theta * theta_bar + s * s_bar) / p, edge0, p, total0),
        (eta, eta * g + s_bar / p, edge1, q, total1),
    ):
        mean = edge_bar * edge / total + size_bar * share
        cases.append(((edge_bar - mean) / total, (size_bar - mean) / total, -mean / total))
    # Inner knot j is the lower end of bin j + 1 and the upper end of bin j.
    end0, end1 = d0_bar * d0 / (damp0 * damp0), d1_bar * d1 / (damp1 * damp1)

    if _unrolled():
        damps = damp.unflatten(-2, (2, bins))
        rows = [
            torch.where(k > j, below, torch.where(k == j, at, above)) * e[..., i, j, :] / damps[..., i, j, :] ** 2
            for i, (below, at, above) in enumerate(cases)
            for j in range(bins)
        ]
        rows += [torch.where(k == j + 1, end0, torch.where(k == j, end1, zero)) for j in range(bins - 1)]
        return grad_x, torch.stack(rows, dim=-2)
    below, at, above = (torch.stack(pair, dim=-2).unsqueeze(-2) for pair in zip(*cases, strict=True))
    index = k.unsqueeze(-2)  # (*, 1, C)
    steps = torch.arange(bins, dtype=k.dtype, device=k.device).unsqueeze(-1)
    here = steps == index
    gamma = torch.where((steps < index).unsqueeze(-3), below, torch.where(here.unsqueeze(-3), at, above))
    grad_logits = gamma.mul_(e).flatten(-3, -2).div_(damp).div_(damp)
    end0, end1 = end0.unsqueeze(-2), end1.unsqueeze(-2)
    grad_ends = torch.where(here[..., 1:, :], end0, torch.where(here[..., :-1, :], end1, zero))
    return grad_x, torch.cat((grad_logits, grad_ends), dim=-2)


def affine_apply(
    phi: Tensor, x: Tensor, bound: float, inverse: bool = False, ladj: bool = True
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    r"""Evaluates the affine map or its inverse, without autograd; arguments and results as of :func:`rqs_apply`.

    Args:
        phi: The shifts :math:`b` and the unconstrained log-scales, with shape :math:`(*, 2, C)`.
        x: The inputs, with shape :math:`(*, C)`.
        bound: Not used.
        inverse: Whether to evaluate the inverse.
        ladj: Whether to return the log-derivative.
    """
    phi = phi.to(x.dtype)
    shift, raw = phi.unbind(-2)
    log_scale = raw / torch.add(1, raw.abs(), alpha=_LOG_DERIVATIVE)
    if inverse:
        log_scale = -log_scale
        x = x - shift
    scale = log_scale.exp()
    scaled = x * scale
    y = scaled if inverse else scaled + shift
    return y, log_scale if ladj else None, (raw, scale, scaled)


def affine_adjoint(
    saved: tuple[Tensor, ...], grad_y: Tensor | None, grad_ladj: Tensor | None, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Pulls gradients back through :func:`affine_apply`; arguments and results as of :func:`rqs_adjoint`."""
    raw, scale, scaled = saved
    along = torch.zeros_like(scale) if grad_y is None else grad_y
    grad_x = along * scale
    grad_raw = along * scaled
    if grad_ladj is not None:
        grad_raw = grad_raw + grad_ladj
    grad_raw = grad_raw / torch.add(1, raw.abs(), alpha=_LOG_DERIVATIVE).square_()
    return grad_x, torch.stack((-grad_x, -grad_raw) if inverse else (along, grad_raw), dim=-2)


class _Univariate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, apply: Callable, adjoint: Callable, phi: Tensor, x: Tensor, bound: float, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        y, ladj, saved = apply(phi, x, bound, inverse)
        ctx.save_for_backward(*saved)
        ctx.adjoint, ctx.bound, ctx.inverse, ctx.dtype = adjoint, bound, inverse, phi.dtype
        ctx.set_materialize_grads(False)
        return y, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x, grad_phi = ctx.adjoint(ctx.saved_tensors, grad_y, grad_ladj, ctx.bound, ctx.inverse)
        return None, None, grad_phi.to(ctx.dtype), grad_x, None, None


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
    return _Univariate.apply(rqs_apply, rqs_adjoint, phi, x, bound, inverse)


def affine(phi: Tensor, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Evaluates the affine map or its inverse, differentiably.

    Args:
        phi: The shifts and the unconstrained log-scales, with shape :math:`(*, 2, C)`.
        x: The inputs, with shape :math:`(*, C)`.
        inverse: Whether to evaluate the inverse.

    Returns:
        The outputs and the log-derivative of the evaluated direction, both with shape :math:`(*, C)`.
    """
    return _Univariate.apply(affine_apply, affine_adjoint, phi, x, 0.0, inverse)
