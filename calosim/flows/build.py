r"""Builders of autoregressive spline flows, and ways to look inside a flow.

Both builders return a plain :class:`zuko.lazy.Flow` whose transformation maps data to noise:

* ``flow(c).log_prob(x)``, ``flow(c).sample()``, ``flow(c).rsample_and_log_prob()`` as everywhere in zuko;
* ``flow(c).transform(x)`` turns data into noise and ``flow(c).transform.inv(z)`` turns *given* noise into data; this is
  how random draws are keyed by row, under :class:`torch.no_grad`;
* :func:`units` names the transformations in order, :func:`trace` returns what happens between them, and :func:`cast`
  makes the copy to sample from in another precision.

Results of a row do not depend on the other rows of its batch beyond rounding: matrix products of different batch sizes
sum in different orders, so the same row may differ in its last bits between batch sizes, not within one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyInverse, UnconditionalDistribution

from .autoregressive import AutoregressiveSpline, checked_order
from .config import FlowConfig, Permutation, Stage
from .made import MaskedConditioner
from .splits import InverseSplits, MaskedSplits

__all__ = ["Side", "Stage", "Trace", "cast", "feature_orders", "iaf", "maf", "stages", "trace", "units"]

Side = Literal["data", "gauss"]

#: The published sizes; never changed.
DEFAULTS = FlowConfig()


def feature_orders(
    features: int,
    transforms: int,
    order: Tensor | Sequence[int] | None = None,
    permutation: Permutation = "reverse",
    seed: int = 0,
) -> list[Tensor]:
    r"""Returns the order in which each transformation visits the features.

    Args:
        features: The number of features :math:`D`.
        transforms: The number of transformations.
        order: The order to start from, a permutation with shape (D,); raster order if :py:`None`.
        permutation: ``alternate`` permutes the order before each transformation, in turn by reversal and at random;
            ``reverse`` starts from `order` and reverses it each time; ``random`` draws each order at random.
        seed: The seed of the random permutations.

    Returns:
        One permutation with shape (D,) per transformation, the same on every machine.

    Raises:
        ValueError: If `order` is not a permutation, or `permutation` is unknown.
    """
    if permutation not in get_args(Permutation):
        raise ValueError(f"unknown permutation {permutation!r}; expected one of {', '.join(get_args(Permutation))}")
    current = torch.arange(features, device="cpu") if order is None else checked_order(torch.as_tensor(order), features)
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for i in range(transforms):
        if permutation == "random" or (permutation == "alternate" and i % 2 == 1):
            current = current[torch.randperm(features, generator=generator, device="cpu")]
        elif permutation == "alternate" or i > 0:
            current = current.flip(0)
        orders.append(current)
    return orders


def _flow(
    inverse: bool,
    features: int,
    context: int,
    config: FlowConfig,
    order: Tensor | Sequence[int] | None,
    chunk: int,
    compile: bool,
) -> Flow:
    if config.transforms < 1:
        raise ValueError(f"expected at least one transformation, got {config.transforms}")
    splines = [
        AutoregressiveSpline(features, context, o, config, chunk, inverse, compile)
        for o in feature_orders(features, config.transforms, order, config.permutation, config.seed)
    ]
    base = UnconditionalDistribution(DiagNormal, torch.zeros(features), torch.ones(features), buffer=True)
    return Flow([LazyInverse(s) for s in splines] if inverse else splines, base)


def maf(
    features: int,
    context: int = 0,
    config: FlowConfig = DEFAULTS,
    *,
    order: Tensor | Sequence[int] | None = None,
    chunk: int = 64,
    compile: bool = False,
    **changes: Any,
) -> Flow:
    r"""Creates a masked autoregressive flow: ``log_prob`` in one pass, sampling exact by chunks.

    Args:
        features: The number of features :math:`D`.
        context: The number of context features :math:`C`.
        config: The flow's settings.
        order: The order to start from, for instance radial from the detector's center; raster order if :py:`None`.
        chunk: The number of features per block of weights and per step of the exact inverse.
        compile: Whether to compile the splines by :func:`torch.compile`; needs a C++ compiler on CPUs.
        changes: Settings of `config` to replace, by name.

    Returns:
        A flow :math:`p(x \mid c)` for data (*, D) and contexts (*, C).

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> flow = maf(features=6, context=2, hidden=(32, 32))
        >>> c = torch.randn(5, 2)
        >>> x = flow(c).sample()
        >>> flow(c).log_prob(x).shape
        torch.Size([5])

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057
        | Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    """
    return _flow(False, features, context, replace(config, **changes), order, chunk, compile)


def iaf(
    features: int,
    context: int = 0,
    config: FlowConfig = DEFAULTS,
    *,
    order: Tensor | Sequence[int] | None = None,
    chunk: int = 64,
    compile: bool = False,
    **changes: Any,
) -> Flow:
    r"""Creates an inverse autoregressive flow: sampling in one pass, ``log_prob`` exact by chunks.

    It is the same block run the other way. Its splines still describe the map from data to noise, so that those of
    :func:`maf` with the same arguments can be distilled into them one by one.

    Args:
        features: The number of features :math:`D`.
        context: The number of context features :math:`C`.
        config: The flow's settings.
        order: See :func:`maf`.
        chunk: See :func:`maf`.
        compile: See :func:`maf`.
        changes: See :func:`maf`.

    Returns:
        A flow :math:`p(x \mid c)` for data (*, D) and contexts (*, C).

    Raises:
        ValueError: If an argument is out of its range.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
          https://arxiv.org/abs/1606.04934
        | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
    """
    return _flow(True, features, context, replace(config, **changes), order, chunk, compile)


def units(flow: Flow, side: Side = "data") -> list[tuple[str, AutoregressiveSpline]]:
    """Names the transformations of a flow, for freezing and distilling them one by one.

    Args:
        flow: A flow built by :func:`maf` or :func:`iaf`.
        side: Where to start: ``data``, or ``gauss`` for the side of the base distribution.

    Returns:
        Pairs of the name in :meth:`torch.nn.Module.named_modules` and the module. The modules' parameters are disjoint
        and cover those of the flow.

    Raises:
        ValueError: If the side is unknown.
    """
    if side not in get_args(Side):
        raise ValueError(f"unknown side {side!r}; expected one of {', '.join(get_args(Side))}")
    found = [(name, m) for name, m in flow.named_modules() if isinstance(m, AutoregressiveSpline)]
    return found if side == "data" else found[::-1]


def stages(flow: Flow | MaskedSplits | InverseSplits, side: Side = "data") -> list[Stage]:
    """The transformations of a flow as stages, see :func:`units`; a network of counts is one."""
    if isinstance(flow, MaskedSplits | InverseSplits):
        return flow.stages()
    found = []
    for _, spline in units(flow, side):
        first = list(spline.conditioner.layers[0].parameters())
        known = set(first)
        found.append(Stage([p for p in spline.parameters() if p not in known], first))
    return found


class Trace(NamedTuple):
    """What happens inside a flow, listed from the data side for both kinds of flow.

    Attributes:
        states: The data, what is between the transformations, and the noise: n + 1 tensors (B, D).
        parameters: The unconstrained parameters of the n transformations, (B, D (3K - 1)) each, or (B, 2 D) if affine, in
            the layout of :meth:`AutoregressiveSpline.evaluate`.
        ladj: The log-determinant of the map from data to noise, with shape (B,).
    """

    states: list[Tensor]
    parameters: list[Tensor]
    ladj: Tensor


def trace(flow: Flow, start: Tensor, c: Tensor | None = None) -> Trace:
    r"""Runs a flow in its fast direction and keeps everything, differentiably.

    Args:
        flow: A flow built by :func:`maf`, which runs from data to noise, or by :func:`iaf`, from noise to data.
        start: The data or the noise to start from, with shape (B, D).
        c: The context, with shape (B, C), or :py:`None`.

    Returns:
        The states and spline parameters. Those of a teacher and of a student with equal orders correspond one by one.
    """
    splines = [module for _, module in units(flow)]
    backward = splines[0].inverse
    states, parameters, total = [start], [], start.new_zeros(len(start))
    for spline in reversed(splines) if backward else splines:
        state, diagonal, phi = spline.evaluate(states[-1], c, parameters=True)
        assert diagonal is not None
        assert phi is not None
        states.append(state)
        parameters.append(phi)
        total = total + diagonal.sum(1)
    return Trace(states[::-1], parameters[::-1], -total) if backward else Trace(states, parameters, total)


def cast(flow: Flow, dtype: torch.dtype, compile: bool | None = None) -> Flow:
    """Returns a frozen copy of a flow to sample from, with its conditioners cast once.

    Inputs, splines and outputs keep their type; only matrix products and the parameters they return are in `dtype`.

    Args:
        flow: A flow built by :func:`maf` or :func:`iaf`.
        dtype: The type of the conditioners, for instance ``torch.bfloat16``.
        compile: Whether to compile the splines; as in the flow if :py:`None`.
    """
    result = copy.deepcopy(flow).eval().requires_grad_(False)
    for module in result.modules():
        if isinstance(module, MaskedConditioner):
            module.to(dtype)
        if isinstance(module, AutoregressiveSpline) and compile is not None:
            module.compile_spline = compile
    return result
