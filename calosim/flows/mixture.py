r"""How many of n photons go one way: a mixture of logistic distributions of logit(v), discretized.

The number :math:`v \in [k / (n + 1), (k + 1) / (n + 1))` stands for :math:`k` of :math:`n`, so that

.. math:: P(k \mid n) = \sum_i w_i \left[ \sigma\left(\frac{y_{k + 1} - \mu_i}{s_i}\right)
                      - \sigma\left(\frac{y_k - \mu_i}{s_i}\right) \right],
          \qquad y_k = \operatorname{logit} \frac{k}{n + 1}

sums to one over :math:`k = 0 \ldots n` whatever the parameters are. They are the mixture's logits, the locations
:math:`\mu_i` and bounded logarithms of the scales :math:`s_i`, laid out (3, K) in the last axis.

References:
    | PixelCNN++: discretized logistic mixture likelihood (Salimans et al., 2017), https://arxiv.org/abs/1701.05517
    | Tree Polya splitting distributions for multivariate count data (2024), https://arxiv.org/abs/2404.19528
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["cdf", "draw", "initial_bias", "inverse", "log_mass", "unpack"]

#: Bound of the logarithm of a scale. A logistic of scale e^-7 is as narrow as a binomial distribution of 10^6 photons.
LOG_SCALE = 7.0

#: Stands for infinity among the edges: beyond 900 scales of the widest logistic, and finite times the narrowest.
_FAR = 1e6

#: Halvings of an interval of 64-bit numbers after which nothing is left to halve.
_HALVINGS = 60

#: Steps that are relatively smaller end the search for a quantile.
_CLOSE = 1e-13

#: Probabilities are not known better: what is smaller is no reason for another step.
_ROUNDING = 1e-15


def initial_bias(nodes: int, components: int) -> Tensor:
    """Parameters to start from: components of about the uniform distribution's width, told apart by chance.

    Args:
        nodes: The number of splits.
        components: The number of components K.

    Returns:
        Parameters with shape (nodes, 3 K).
    """
    start = torch.randn(nodes, 3, components) * 0.3
    start[:, 2] = -0.5
    return start.flatten(1)


def unpack(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, locations and bounded log-scales, each (*, K)."""
    logits, location, raw = parameters.unflatten(-1, _layout(parameters)).unbind(-2)
    return logits, location, raw / (1 + raw.abs() / LOG_SCALE)


def _edges(k: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The edges of the interval in y and its width, each (*), without cancellation; an end without bound is far away."""
    rest = n - k
    some, left = k.clamp(min=0.5), rest.clamp(min=0.5)
    low = torch.where(k > 0, some.log() - (rest + 1).log(), -_FAR)
    high = torch.where(rest > 0, (k + 1).log() - left.log(), _FAR)
    # log((k + 1) / (n - k)) - log(k / (n + 1 - k)), to all digits; an open end is far from everything.
    width = torch.where((k > 0) & (rest > 0), some.reciprocal().log1p() + left.reciprocal().log1p(), _FAR)
    return low, high, width


class _LogMass(torch.autograd.Function):
    """The logarithm of the mass with its gradient by hand: a few passes instead of a few dozen."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, n: Tensor, parameters: Tensor) -> Tensor:
        # (3, K, P): reductions over a few components are fast along the first axis, not along the last.
        logits, location, raw = parameters.reshape(-1, *_layout(parameters)).permute(1, 2, 0).contiguous()
        damp = 1 + raw.abs() / LOG_SCALE
        inverse = torch.exp(-raw / damp)
        low, high, width = _edges(k.flatten(), n.flatten())
        a, b, d = (low - location) * inverse, (high - location) * inverse, width * inverse
        weights = logits.log_softmax(0)
        joint = F.logsigmoid(b).add_(F.logsigmoid(-a)).add_(torch.expm1(-d).neg_().log_()).add_(weights)
        total = torch.logsumexp(joint, 0)
        ctx.save_for_backward(a, b, d, inverse, damp, weights, joint, total)
        ctx.shape = parameters.shape
        return total.view(k.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        a, b, d, inverse, damp, weights, joint, total = ctx.saved_tensors
        grad = grad.flatten()
        share = torch.exp(joint - total).mul_(grad)
        above, below = torch.sigmoid(-b), torch.sigmoid(a)
        location = (below - above).mul_(inverse).mul_(share)
        # d log(sigma(b) - sigma(a)) along (a, b), the direction that a wider scale shrinks.
        scale = (a * below).sub_(above.mul_(b)).sub_(d / torch.expm1(d)).mul_(share).div_(damp.square())
        logits = share - weights.exp().mul_(grad)
        return None, None, torch.stack((logits, location, scale)).permute(2, 0, 1).reshape(ctx.shape)


def _layout(parameters: Tensor) -> tuple[int, int]:
    return 3, parameters.shape[-1] // 3


def log_mass(k: Tensor, n: Tensor, parameters: Tensor) -> Tensor:
    r"""The logarithm of the probability of :math:`k` of :math:`n`.

    Args:
        k: Photons that go the first way, 0 to n, with shape (*,).
        n: Photons with shape (*,), 0 to :math:`10^6` and beyond.
        parameters: With shape (*, 3 K); differentiable once, finite everywhere.

    Returns:
        Nats with shape (*,), of the type of the parameters; 0 up to rounding where there are no photons.

    Example:
        >>> parameters = torch.zeros(1, 3 * 4, dtype=torch.float64)
        >>> k = torch.arange(6)
        >>> round(log_mass(k, torch.full((6,), 5), parameters.expand(6, -1)).exp().sum().item(), 12)
        1.0
    """
    return _LogMass.apply(k.to(parameters.dtype), n.to(parameters.dtype), parameters)


def cdf(y: Tensor, parameters: Tensor) -> Tensor:
    """The continuous distribution function of :math:`y = logit(v)`: the monotone map from data to uniform noise.

    Args:
        y: With shape (*,).
        parameters: With shape (*, 3 K).

    Returns:
        Numbers in [0, 1] with shape (*,).
    """
    logits, location, log_scale = unpack(parameters)
    return (logits.softmax(-1) * torch.sigmoid((y.unsqueeze(-1) - location) * torch.exp(-log_scale))).sum(-1)


@torch.no_grad()
def inverse(u: Tensor, parameters: Tensor) -> Tensor:
    """Inverts :func:`cdf`: the monotone map from uniform noise to data.

    By Newton's method between bounds, which halves what is left where a step leads out of it or gains too little. Every
    number stops by itself: up to its last digits it does not depend on its batch.

    Args:
        u: Uniform numbers in (0, 1), float64, with shape (*,).
        parameters: With shape (*, 3 K).

    Returns:
        y = logit(v), float64, with shape (*,).
    """
    logits, location, log_scale = (t.movedim(-1, 0) for t in unpack(parameters.double()))
    weights, narrow = logits.softmax(0), torch.exp(-log_scale)
    # The quantile of a mixture lies between those of its components.
    each = location + torch.logit(u) / narrow
    low, high = each.amin(0), each.amax(0)
    y, step = (low + high) / 2, high - low
    for _ in range(_HALVINGS):
        share = torch.sigmoid((y - location) * narrow)
        off = (weights * share).sum(0) - u
        slope = (weights * narrow * share * (1 - share)).sum(0)
        low, high = torch.where(off < 0, y, low), torch.where(off > 0, y, high)
        new = y - off / slope
        # Also where the slope is 0, and the step no number.
        good = (new > low) & (new < high) & ((new - y).abs() < step.abs() / 2)
        done = (step.abs() <= _CLOSE * (1 + y.abs())) | (off.abs() <= _ROUNDING)
        new = torch.where(good, new, (low + high) / 2)
        y, step = torch.where(done, y, new), torch.where(done, 0.0, new - y)
        if not torch.jit.is_tracing() and bool(done.all()):
            break
    return y


def _count(v: Tensor, n: Tensor) -> Tensor:
    return torch.minimum((v * (n + 1)).to(n.dtype), n)


def draw(u: Tensor, y: Tensor, n: Tensor, parameters: Tensor) -> Tensor:
    """Draws k: one number chooses the component, the other is turned into its quantile.

    Args:
        u: Uniform numbers in (0, 1), with shape (*,).
        y: Standard logistic numbers, that is the logits of other uniform numbers, float64, with shape (*,).
        n: Photons, integers, with shape (*,).
        parameters: With shape (*, 3 K); fast if the columns are contiguous.

    Returns:
        k, of the type of n, with shape (*,).
    """
    logits, each = parameters.movedim(-1, 0).unflatten(0, (3, -1)).split((1, 2))
    # Reductions over a few components are fast along the first axis, not along the last.
    steps = logits[0].softmax(0).cumsum(0)[:-1]
    chosen = (steps < u.to(steps.dtype)).sum(0, keepdim=True)
    # Of the chosen component only is the rest computed.
    location, raw = each.gather(1, chosen.expand(2, 1, *u.shape))[:, 0].double()
    return _count(torch.sigmoid(torch.addcmul(location, torch.exp(raw / (1 + raw.abs() / LOG_SCALE)), y)), n)
