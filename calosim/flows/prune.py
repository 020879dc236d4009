r"""Narrower flows out of trained ones: hidden units are removed and the rest learns, by least squares, to stand in for them.

A narrow student that starts from random weights needs as long a training as a wide one. One that is cut out of the wide
one starts close to it. In every layer the most active units of each chunk are kept; the next layer's weights are then
fitted so that what it computed from all units it computes, as nearly as a linear map can, from those that are left,

.. math:: \min_W \; \sum_n \left| y_n - W^T \tilde h_n \right|^2 + \lambda |W - W_0|^2,

with the wide layer's outputs :math:`y`, the narrow network's own hidden units :math:`\tilde h` (so that the error of one
layer is made good by the next) and the weights :math:`W_0` of the units that are kept. Outputs of degree :math:`d` are
fitted from units up to that degree only: the autoregressive structure stays, and since units are sorted by degree, one
Cholesky factor of their Gram matrix holds the factors of all its prefixes.

References:
    | ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (Luo et al., 2017),
      https://arxiv.org/abs/1707.06342
    | Channel Pruning for Accelerating Very Deep Neural Networks (He et al., 2017), https://arxiv.org/abs/1707.06168
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from zuko.lazy import Flow

from .autoregressive import AutoregressiveSpline
from .build import trace, units
from .made import BlockTriangularLinear, MaskedConditioner

__all__ = ["prune"]

#: The weight of the kept units' old weights in the fit, relative to the mean square of a hidden unit.
_RIDGE = 1e-2


@torch.no_grad()
def prune(wide: Flow, narrow: Flow, start: Tensor, c: Tensor | None = None) -> None:
    r"""Fits a narrower flow to a trained one, in place.

    Args:
        wide: A trained flow built by :func:`maf` or :func:`iaf`.
        narrow: A flow of the same kind, features, context, orders and bins, whose hidden layers are not wider.
        start: Data for a :func:`maf`, noise for an :func:`iaf`, with shape (B, D): inputs on which they shall agree.
            More rows than hidden units.
        c: The context, with shape (B, C), or :py:`None`.

    Raises:
        ValueError: If the flows differ in more than their widths, or `narrow` is the wider one.
    """
    pairs = [(a, b) for (_, a), (_, b) in zip(units(wide), units(narrow), strict=False)]
    if len(units(wide)) != len(units(narrow)) or not all(_fits(a, b) for a, b in pairs):
        raise ValueError(
            "expected two flows of the same transforms, pixel orders, bins and bound, the second with hidden layers that are as "
            "many and not wider"
        )
    states = trace(wide, start, c).states
    for k, (a, b) in enumerate(pairs):
        u = states[k + 1] if a.inverse else states[k]
        _conditioner(a.conditioner, b.conditioner, u[:, a.order], c)


def _fits(a: AutoregressiveSpline, b: AutoregressiveSpline) -> bool:
    x, y = a.conditioner, b.conditioner
    return (
        (a.bins, a.bound, a.inverse) == (b.bins, b.bound, b.inverse)
        and torch.equal(a.order, b.order)
        and (x.context, len(x.layers)) == (y.context, len(y.layers))
        and all(len(p) >= len(q) for p, q in zip(x.degrees, y.degrees, strict=True))
    )


def _conditioner(wide: MaskedConditioner, narrow: MaskedConditioner, u: Tensor, c: Tensor | None) -> None:
    full = h = u if c is None else torch.cat((c, u), dim=1)
    degrees = torch.cat((torch.zeros(wide.context, dtype=torch.long), torch.arange(1, wide.features + 1)))
    kept = torch.arange(len(degrees))  # which of the wide layer's inputs the narrow one has
    blocks = [[m for m in (*n.layers, n.output) if isinstance(m, BlockTriangularLinear)] for n in (wide, narrow)]
    for i, (old, new) in enumerate(zip(*blocks, strict=True)):
        dense = _dense(old, full.shape[1])
        response = torch.addmm(old.bias, full, dense)
        if new is narrow.output:
            # Outputs of a chunk are stored (parameter, feature), and see the features of their own chunk directly.
            theirs, ours = (_outputs(n) for n in (wide, narrow))
            chosen, rows = theirs.argsort()[ours], ours // new.repeat
            _share_local(wide, narrow, response, u, chosen)
        else:
            rows = narrow.degrees[i]
            weight = _dense(blocks[0][i + 1], response.shape[1]).square().sum(1).sqrt()
            chosen = _chosen(F.relu(response).std(0) * weight, wide.degrees[i], rows, wide.edges)
        first, bias = dense[kept][:, chosen], old.bias[chosen]
        if i:  # the inputs of the first layer are the same: nothing to make good
            first, bias = _fit(h, response[:, chosen], first, bias, degrees, rows)
        new.bias.copy_(bias)
        for j, block in enumerate(new.weights):
            block[: new.prefix[j]] = first[: new.prefix[j], new.rows(j)]
            new.clean(j, block)
        if new is not narrow.output:
            full, h = F.relu(response), F.relu(torch.addmm(new.bias, h, _dense(new, h.shape[1])))
            degrees, kept = rows, chosen


def _dense(layer: BlockTriangularLinear, inputs: int) -> Tensor:
    """The weights (inputs, outputs) but for those of local inputs, as one matrix."""
    dense = layer.bias.new_zeros(inputs, layer.bias.numel())
    for i, weight in enumerate(layer.weights):
        dense[: layer.prefix[i], layer.rows(i)] = weight[: layer.prefix[i]]
    return dense


def _outputs(made: MaskedConditioner) -> Tensor:
    """For each output of a conditioner, in the order they are stored, feature * parameters + parameter."""
    count = made.parameters_per_feature
    chunks = [torch.arange(lo, hi)[None] * count + torch.arange(count)[:, None] for lo, hi in pairwise(made.edges)]
    return torch.cat([chunk.flatten() for chunk in chunks])


def _share_local(
    wide: MaskedConditioner, narrow: MaskedConditioner, response: Tensor, u: Tensor, chosen: Tensor
) -> None:
    """Copies the weights of local inputs, in place; what has no place there, at other chunks' edges, joins `response`."""
    new, old = narrow.output, wide.output
    place = chosen.argsort()  # of the wide layer's outputs in the narrow one
    chunk = torch.bucketize(torch.arange(wide.features), torch.tensor(narrow.edges), right=True) - 1
    for weight, prefix in zip(new.weights, new.prefix, strict=True):
        weight[prefix:] = 0
    for j, (lo, hi) in enumerate(pairwise(wide.edges)):
        local = old.weights[j][old.prefix[j] :].clone()
        columns = place[old.rows(j)]
        features = torch.arange(lo, hi).repeat(old.repeat)
        for row, feature in enumerate(range(lo, hi - 1)):
            k = int(chunk[feature])
            if feature < narrow.edges[k + 1] - 1:
                here = chunk[features] == k
                row_of_new = new.prefix[k] + feature - narrow.edges[k]
                new.weights[k][row_of_new, columns[here] - new.rows(k).start] = local[row, here]
                local[row, here] = 0
        if local.any():
            response[:, old.rows(j)] += u[:, lo : hi - 1] @ local


def _chosen(activity: Tensor, wide: Tensor, narrow: Tensor, edges: tuple[int, ...]) -> Tensor:
    """Which unit of the wide layer becomes each one of the narrow layer: none that sees more, so that no input is lost.

    Of those, the most active of the same chunk that is left, else the one that sees most. Units that see the context alone
    are a chunk of their own.
    """
    limits = torch.tensor([0, 1, *edges[1:]])
    groups, wanted = (torch.bucketize(degrees, limits, right=True) for degrees in (wide, narrow))
    free = torch.ones(len(wide), dtype=torch.bool)
    chosen = []
    for degree, group in zip(narrow.tolist(), wanted.tolist(), strict=True):
        able = wide <= degree
        left = able & free if (able & free).any() else able
        best = left & (groups == group)
        if not best.any():
            best = left & (wide == wide[left].max())
        chosen.append(int(torch.where(best, activity.cpu(), -1.0).argmax()))
        free[chosen[-1]] = False
    return torch.tensor(chosen)


def _fit(h: Tensor, y: Tensor, first: Tensor, bias: Tensor, known: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (H, M) and biases (M,) of the penalized least squares, outputs from units up to their degree only."""
    x = torch.cat((torch.ones_like(h[:, :1]), h), dim=1).double()
    start = torch.cat((bias[None], first)).double()
    start[1:].masked_fill_(known[:, None] > rows, 0)
    gram = x.t() @ x
    scale = _RIDGE * len(x) * h.double().square().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(gram + scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    moments = x.t() @ y.double() - gram @ start
    widths = torch.searchsorted(known, rows, right=True) + 1
    for width in widths.unique().tolist():
        columns = (widths == width).nonzero()[:, 0]
        step = torch.cholesky_solve(moments[:width, columns], factor[:width, :width])
        start[:width, columns] += step
    return start[1:].to(h), start[0].to(h)
