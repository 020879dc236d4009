r"""The masked conditioner: block-triangular layers without masks in the forward pass.

Features are sorted into the declared order before they arrive here; feature :math:`i` may depend on the features
before it only. A unit of degree :math:`d` sees the first :math:`d` features. Units are sorted by degree, so a weight
matrix is a staircase: it is stored as one dense block per chunk of consecutive degrees, each as wide as the prefix the
chunk may see. What is forbidden inside a block, a strip on the diagonal, is zero at initialization and stays so because
the backward pass zeroes its gradient; this is part of the layer's own backward, not a hook, so that copies, processes
and wrappers cannot lose it.

Degrees are spread evenly over the features. (Counting 1, 2, 3 ... as usual, a hidden width below the number of features
leaves the late features blind to their neighbors.) A width below the number of features cannot give every feature a
unit of its own; the output layer closes the gaps by seeing the earlier features of its own chunk directly.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["BlockTriangularLinear", "MaskedConditioner", "spread_degrees"]

#: A flow starts close to the identity: it trains from there faster, and its exact inverse converges in a few passes.
_OUTPUT_GAIN = 0.1


def spread_degrees(units: int, edges: Sequence[int]) -> Tensor:
    r"""Spreads the degrees of hidden units evenly over the features.

    Args:
        units: The number of units :math:`H`, at least one per chunk.
        edges: The first feature of every chunk, and the number of features :math:`D` at the end. Every chunk's first
            unit has the degree of the chunk's start, so that all of what came before reaches the chunk.

    Returns:
        Sorted integers in :math:`[0, D - 1]` with shape :math:`(H,)`.
    """
    chunks = len(edges) - 1
    parts = []
    for i, (start, stop) in enumerate(pairwise(edges)):
        share = (i + 1) * units // chunks - i * units // chunks
        parts.append(start + torch.arange(share) * (stop - start) // share)
    return torch.cat(parts)


class BlockTriangularLinear(nn.Module):
    r"""A linear layer :math:`y = x W + b` whose weights connect increasing degrees only, stored as blocks.

    Blocks are stored with shape (inputs, outputs): the forward product, and above all the gradient of the weights, run
    faster this way on CPUs, and the rows of what a chunk knows and of what it does not are contiguous.

    Args:
        in_degrees: The sorted degrees of the inputs, with shape (N,).
        out_degrees: The sorted degrees of the outputs, with shape (M,); an output sees the inputs of degrees up to its.
        edges: The first degree of every chunk, and the end.
        known: How many inputs are known before each chunk starts: the columns up to there are dense.
        repeat: The number of outputs per output degree; those of a chunk are stored (repeat, degree).
        local: Whether an additional input carries one value of degree :math:`d + 1` per output degree :math:`d`.
            A chunk sees the values of its own degrees.
        gain: The factor on the initial weights and biases, once more on those of local inputs.
    """

    def __init__(
        self,
        in_degrees: Tensor,
        out_degrees: Tensor,
        edges: Sequence[int],
        known: Sequence[int],
        repeat: int = 1,
        local: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.repeat, self.known, self.gain = repeat, tuple(known), gain
        self.edges = tuple(torch.searchsorted(out_degrees, torch.tensor(edges)).tolist())  # rows of the chunks
        self.prefix: list[int] = []
        self.weights = nn.ParameterList()
        self.bias = nn.Parameter(torch.empty(len(out_degrees) * repeat))
        for i, (lo, hi) in enumerate(pairwise(self.edges)):
            rows = out_degrees[lo:hi]
            width = int(torch.searchsorted(in_degrees, rows[-1], right=True))
            columns = in_degrees[self.known[i] : width]
            if local:
                columns = torch.cat((columns, rows[:-1] + 1))
            self.prefix.append(width)
            self.register_buffer(f"forbidden_{i}", columns.unsqueeze(-1) > rows, persistent=False)
            self.weights.append(torch.empty(self.known[i] + len(columns), len(rows) * repeat))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as :class:`torch.nn.Linear` does, by the width of each block, times the gain.

        Blocks are drawn in parallel, each from a generator of its own seeded by torch's global one, so that the weights
        do not depend on the number of threads.
        """
        seeds = torch.randint(2**62, (len(self.weights),), device="cpu").tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(self._draw, range(len(seeds)), seeds))

    @torch.no_grad()  # the mode is a thread's own
    def _draw(self, i: int, seed: int) -> None:
        weight = self.weights[i]
        generator = torch.Generator(weight.device).manual_seed(seed)
        bound = self.gain / math.sqrt(max(weight.shape[0], 1))
        weight.uniform_(-bound, bound, generator=generator)
        self.bias[self.rows(i)].uniform_(-bound, bound, generator=generator)
        weight[self.prefix[i] :] *= self.gain
        self.clean(i, weight)

    def extra_repr(self) -> str:
        """The layer's size, blocks and share of the dense layer's weights."""
        packed = sum(w.numel() for w in self.weights)
        return f"out_features={self.bias.numel()}, blocks={len(self.weights)}, weights={packed}"

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The weights. Going through the list itself looks each up by its name: 7 microseconds, a third of its product."""
        return tuple(self.weights._parameters.values())  # type: ignore[arg-type]

    def rows(self, i: int) -> slice:
        """The rows of block `i` in the bias and in the output."""
        return slice(self.edges[i] * self.repeat, self.edges[i + 1] * self.repeat)

    def clean(self, i: int, weight: Tensor) -> Tensor:
        """Zeroes what is forbidden in a tensor shaped like block `i`, in place."""
        forbidden = self.get_buffer(f"forbidden_{i}")
        if forbidden.numel():
            weight[self.known[i] :].unflatten(1, (self.repeat, -1)).masked_fill_(forbidden.unsqueeze(1), 0)
        return weight

    def inputs(self, i: int, x: Tensor, local: Tensor | None) -> Tensor:
        """The columns that block `i` sees, with shape (B, columns)."""
        prefix = x[:, : self.prefix[i]]
        if local is None:
            return prefix
        return torch.cat((prefix, local[:, self.edges[i] : self.edges[i + 1] - 1].to(x.dtype)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        r"""Applies the layer.

        Args:
            x: The inputs, with shape (B, N).

        Returns:
            The outputs, with shape (B, M * repeat), in the type of the weights or of the autocast region.
        """
        return _BlockLinear.apply(self, x, self.bias, *self.blocks)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        for i, weight in enumerate(self.weights):
            key = f"{prefix}weights.{i}"
            loaded = state_dict.get(key)
            if loaded is None or loaded.shape != weight.shape:
                continue  # reported by torch
            if not torch.equal(loaded, self.clean(i, loaded.clone())):
                errors.append(f"{key}: expected zeros outside the autoregressive structure, got other weights there")
        super()._load_from_state_dict(state_dict, prefix, *args)


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """The type to multiply in: that of the autocast region if there is one, else that of the parameter."""
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype


def weight_gradient(layer: BlockTriangularLinear, i: int, grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of block `i` in the parameter's type, with zeros where weights are forbidden."""
    return layer.clean(i, (x.t() @ grad).to(layer.bias.dtype))


def block_linear(layer: BlockTriangularLinear, x: Tensor, bias: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The raw forward pass of a layer without local inputs; `x` with shape (B, N)."""
    return torch.cat(
        [torch.addmm(bias[layer.rows(i)], layer.inputs(i, x, None), w) for i, w in enumerate(weights)], dim=1
    )


class _BlockLinear(torch.autograd.Function):
    """All blocks of a layer in one node: no padded gradient per slice, and no way around the structure."""

    @staticmethod
    def forward(ctx: Any, layer: BlockTriangularLinear, x: Tensor, bias: Tensor, *weights: Tensor) -> Tensor:
        dtype = compute_dtype(bias)
        ctx.layer, ctx.dtype = layer, x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, *weights)
        with torch.autocast(x.device.type, enabled=False):
            return block_linear(layer, x, bias.to(dtype), [w.to(dtype) for w in weights])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        layer = ctx.layer
        grad_x = (
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if ctx.needs_input_grad[1] else None
        )
        grad_weights: list[Tensor | None] = []
        for i, weight in enumerate(weights):
            g = grad[:, layer.rows(i)]
            inputs = layer.inputs(i, x, None)
            if grad_x is not None:
                grad_x[:, : layer.prefix[i]] += g @ weight.to(g.dtype).t()
            grad_weights.append(weight_gradient(layer, i, g, inputs) if ctx.needs_input_grad[3 + i] else None)
        grad_bias = grad.sum(0).to(layer.bias.dtype) if ctx.needs_input_grad[2] else None
        return None, None if grad_x is None else grad_x.to(ctx.dtype), grad_bias, *grad_weights


class MaskedConditioner(nn.Module):
    r"""A masked network from the features and the context to parameters of every feature.

    Args:
        features: The number of features :math:`D`.
        context: The number of context features.
        hidden: The widths of the hidden layers.
        parameters: The number of outputs per feature :math:`P`.
        chunk: The number of features per block; enlarged where a hidden layer would have fewer units than blocks.
        dropout: The probability of dropping a hidden unit in training.
        context_share: The share of hidden units of degree 0, which see the context only and are seen by all features.

    Raises:
        ValueError: If there is no hidden layer, or if a size is not positive.
    """

    def __init__(
        self,
        features: int,
        context: int,
        hidden: Sequence[int],
        parameters: int,
        chunk: int = 64,
        dropout: float = 0.0,
        context_share: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"features": features, "parameters": parameters, "chunk": chunk, "hidden": min(hidden, default=0)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"expected {name} to be positive, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout probability in [0, 1), got {dropout}")
        if not 0 <= context_share < 1:
            raise ValueError(f"expected a share of context units in [0, 1), got {context_share}")
        self.features, self.context, self.parameters_per_feature, self.dropout = features, context, parameters, dropout
        reserved = [int(context_share * width) for width in hidden]
        size = max(chunk, math.ceil(features / min(w - r for w, r in zip(hidden, reserved, strict=True))))
        self.edges = (*range(0, features, size), features)

        degrees = torch.cat((torch.zeros(context, dtype=torch.long), torch.arange(1, features + 1)))
        known = [context + e for e in self.edges[:-1]]
        self.layers = nn.ModuleList()
        self.degrees: list[Tensor] = []  # of the hidden units, layer by layer
        for width, zeros in zip(hidden, reserved, strict=True):
            units = torch.cat((torch.zeros(zeros, dtype=torch.long), spread_degrees(width - zeros, self.edges)))
            self.layers.append(BlockTriangularLinear(degrees, units, self.edges, known))
            self.degrees.append(units)
            degrees, known = units, torch.searchsorted(units, torch.tensor(self.edges[:-1])).tolist()
        self.output = BlockTriangularLinear(
            degrees, torch.arange(features), self.edges, known, repeat=parameters, local=True, gain=_OUTPUT_GAIN
        )

    def forward(self, x: Tensor, c: Tensor | None, dropout: bool = True) -> Tensor:
        r"""Evaluates the hidden layers; the output layer is evaluated chunk by chunk together with what it feeds.

        Args:
            x: The features in the declared order, with shape (B, D).
            c: The context, with shape (B, C), or :py:`None`.
            dropout: Whether to drop hidden units while in training mode.

        Returns:
            The last hidden layer, with shape (B, H).
        """
        h = x if c is None else torch.cat((c, x), dim=1)
        for layer in self.layers:
            h = F.relu(layer(h))
            if dropout and self.training and self.dropout > 0:
                h = F.dropout(h, self.dropout)
        return h
