r"""Autoregressive spline transformations with a fast direction and an exact, chunked inverse.

The fast direction evaluates the conditioner once, :math:`v_i = h(u_i; \phi_i(u_{<i}))`. Its inverse needs :math:`u` to
compute :math:`\phi`. Instead of one full pass per feature, it walks through chunks of features: the prefix of all
earlier chunks enters each layer by one matrix product, then the chunk itself is iterated to its fixed point. Inside a
chunk the iteration is triangular: in every pass, the features up to the first that changed are final, whatever the
weights are, so it ends after at most one pass per feature of the chunk, and in practice after a few. A row stops when it
stands still up to rounding, whatever the other rows do; what the passes have in common is computed once, and neither
what is final nor most rows that are done are computed again.

References:
    | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
      https://arxiv.org/abs/1606.04934
    | Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving (Song et al., 2021),
      https://arxiv.org/abs/2002.03629
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform
from zuko.utils import broadcast

from .config import FlowConfig
from .made import BlockTriangularLinear, MaskedConditioner, compute_dtype, weight_gradient
from .spline import affine_adjoint, affine_apply, rqs_adjoint, rqs_apply

__all__ = ["AutoregressiveSpline", "AutoregressiveSplineTransform"]

#: Spline parameters per call on a CPU: what stays in the level-2 cache of a core.
_CACHED = 400_000

#: A value stands still when it changes by less than this many times its rounding error. The spline itself rounds that much:
#: waiting for the last bit takes more than twice the passes on a trained flow, and the round trip is not closer by it.
_STILL = 32


@lru_cache
def _compiled(function: Callable) -> Callable:
    # One program for all batches and chunks: all sizes are symbols, but for the bins, over which the function loops.
    return torch.compile(function, dynamic=True)


class AutoregressiveSpline(LazyTransform):
    r"""A lazy autoregressive rational-quadratic spline transformation.

    The fast direction maps :math:`u` to :math:`v`. For a masked autoregressive flow, :math:`u` is the data side and the
    univariate map is the spline; for an inverse autoregressive flow, :math:`u` is the Gaussian side and the univariate
    map is the inverse of the spline (`inverse`). Spline parameters therefore describe the map from data to noise in both,
    and those of a teacher and of its student can be compared one by one.

    Args:
        features: The number of features :math:`D`.
        context: The number of context features.
        order: The features in the order they are visited, a permutation with shape (D,).
        config: Hidden widths, bins :math:`K`, bound :math:`B` and so on. The exact inverse never drops units.
        chunk: The number of features per chunk.
        inverse: Whether the univariate map is the inverse of the spline.
        compile: Whether to compile the spline.

    Raises:
        ValueError: If `order` is not a permutation or a size is out of range.
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        context: int,
        order: Tensor,
        config: FlowConfig,
        chunk: int = 64,
        inverse: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        bins, bound = config.bins, config.bound
        if bins < 0:
            raise ValueError(f"expected a number of bins, or 0 for affine maps, got {bins}")
        if not bound > 0:
            raise ValueError(f"expected a positive bound, got {bound}")
        self.bins, self.bound, self.inverse, self.compile_spline = bins, bound, inverse, compile
        self.register_buffer("order", checked_order(order, features))
        parameters = 3 * bins - 1 if bins else 2
        rest = chunk, config.dropout, config.context_share
        self.conditioner = MaskedConditioner(features, context, config.hidden, parameters, *rest)

    def extra_repr(self) -> str:
        """The spline's settings."""
        return f"bins={self.bins}, bound={self.bound}, inverse={self.inverse}"

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}order")
        if loaded is not None and loaded.shape == self.order.shape:
            try:
                checked_order(loaded, self.conditioner.features)
            except ValueError as error:
                args[-1].append(f"{prefix}order: {error}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, c: Tensor | None = None) -> Transform:
        r"""Returns the transformation from :math:`u` to :math:`v` given a context with shape (*, C)."""
        return AutoregressiveSplineTransform(self, c)

    def univariate(self, *args: Any) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Evaluates the spline, or the affine map; see :func:`rqs_apply`."""
        return self._run(rqs_apply if self.bins else affine_apply, *args)

    def adjoint(self, *args: Any) -> tuple[Tensor, Tensor]:
        """Pulls gradients back through :meth:`univariate`; see :func:`rqs_adjoint`."""
        return self._run(rqs_adjoint if self.bins else affine_adjoint, *args)

    def _run(self, function: Callable, *args: Any) -> Any:
        if not self.compile_spline:
            return function(*args)
        # Strides of slices, even of a single row, would each ask for a program of their own.
        return _compiled(function)(*(a.clone(memory_format=torch.contiguous_format) if _sliced(a) else a for a in args))

    def evaluate(
        self, u: Tensor, c: Tensor | None, ladj: bool = True, parameters: bool = False, dropout: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        r"""Evaluates the fast direction.

        Args:
            u: The inputs, with shape (B, D), features in their natural order.
            c: The context, with shape (B, C), or :py:`None`.
            ladj: Whether to return the log-derivatives.
            parameters: Whether to return the spline parameters.
            dropout: Whether to drop hidden units while in training mode.

        Returns:
            The outputs :math:`v` (B, D); the logarithms of the Jacobian's diagonal (B, D), whose sum is the
            log-determinant; and the unconstrained spline parameters (B, D (3K - 1)), or (B, 2 D) of affine maps, in the
            layout of the output layer, which is the same for transformations with the same order, bins and chunks.
        """
        u = u[:, self.order]
        h = self.conditioner(u, c, dropout)
        output = self.conditioner.output
        tensors = (h, u, output.bias, *output.blocks)
        if torch.is_grad_enabled() and not torch.compiler.is_exporting() and any(t.requires_grad for t in tensors):
            v, diagonal, phi = _SplineHead.apply(self, ladj, parameters, *tensors)
        else:
            v, diagonal, phi, _ = _head(self, *tensors, ladj=ladj, parameters=parameters)
        rank = self.order.argsort()
        return v[:, rank], None if diagonal is None else diagonal[:, rank], phi

    def groups(self, batch: int, device: torch.device) -> list[tuple[int, int]]:
        """Runs of chunks of equal size that share one call of the spline."""
        edges = self.conditioner.edges
        chunks, size = len(edges) - 1, edges[1] - edges[0]
        full = chunks if edges[-1] - edges[-2] == size else chunks - 1
        if device.type == "cpu":
            step = max(1, _CACHED // (batch * size * self.conditioner.parameters_per_feature))
        else:
            step = max(full, 1)
        return [(i, min(i + step, full)) for i in range(0, full, step)] + [(full, chunks)] * (full < chunks)

    @torch.no_grad()
    def invert(self, v: Tensor, c: Tensor | None) -> Tensor:
        r"""Evaluates the inverse of the fast direction exactly, without dropout.

        Args:
            v: The outputs of the fast direction, with shape (B, D).
            c: The context, with shape (B, C), or :py:`None`.

        Returns:
            The inputs of the fast direction, with shape (B, D).
        """
        made = self.conditioner
        dtype = compute_dtype(made.output.bias)
        v = v[:, self.order]
        x = v.new_zeros(len(v), made.context + made.features, dtype=dtype)
        if c is not None:
            x[:, : made.context] = c
        layers = [m for m in (*made.layers, made.output) if isinstance(m, BlockTriangularLinear)]
        # Zeros, not empty: for odd widths, oneDNN's bfloat16 products read one column beyond a slice and multiply it by
        # zero, which a NaN in fresh memory survives.
        states = [x, *(x.new_zeros(len(v), layer.bias.numel()) for layer in layers[:-1])]
        blocks = [layer.blocks for layer in layers]
        done, still = torch.empty_like(v), _STILL * torch.finfo(v.dtype).eps
        with torch.autocast(v.device.type, enabled=False):
            for i, (start, stop) in enumerate(pairwise(made.edges)):
                # The part of every layer that does not change inside the chunk, and the rest of its weights.
                fixed, strips = [], []
                for layer, state, weights in zip(layers, states, blocks, strict=True):
                    weight = weights[i].to(dtype)
                    known = layer.known[i]
                    bias = layer.bias[layer.rows(i)].to(dtype)
                    fixed.append(torch.addmm(bias, state[:, :known], weight[:known]))
                    strips.append(weight[known:])
                target = u = v[:, start:stop]
                rows = torch.arange(len(v), device=v.device)
                moving = torch.ones_like(rows, dtype=torch.bool)
                final = 0  # features of this chunk that no further pass can change
                while True:
                    h = u.to(dtype)
                    hidden = []
                    for constant, strip in zip(fixed[:-1], strips[:-1], strict=True):
                        h = torch.addmm(constant, h[:, : len(strip)], strip).relu_()
                        hidden.append(h)
                    h = torch.cat((h, u[:, :-1].to(dtype)), dim=1)
                    # What is final is not computed again, unless compiled: then equal sizes are worth more.
                    same = 0 if self.compile_spline else final
                    phi = torch.addmm(fixed[-1], h, strips[-1]).unflatten(1, (-1, stop - start))[..., same:]
                    new, _, _ = self.univariate(phi, target[:, same:], self.bound, not self.inverse, False)
                    before = u[:, same:]
                    moved = (new - before).abs() > still * new.abs().clamp(min=1)
                    moved &= moving[:, None]  # a row that stood still once stays, whatever the others do
                    changed = moved.any(0)
                    # All before the first change are where they were, so the first to change saw final values only.
                    u = torch.cat((u[:, :same], torch.where(moving[:, None], new, before)), dim=1)
                    final = max(final, same + int(changed.int().argmax())) + 1
                    moving = moved.any(1)
                    count = int(moving.sum())
                    over = count == 0 or final >= stop - start
                    # Rows that stood still are done; copying the rest pays when a quarter or more of them are.
                    if over or 4 * count <= 3 * len(moving):
                        done[rows, start:stop] = u
                        for layer, state, h in zip(layers[:-1], states[1:], hidden, strict=True):
                            state[rows, layer.rows(i)] = h
                        if over:
                            break
                        kept = moving.nonzero()[:, 0]
                        rows, moving, u, target = rows[kept], moving[kept], u[kept], target[kept]
                        fixed = [constant[kept] for constant in fixed]
                x[:, made.context + start : made.context + stop] = done[:, start:stop]
        return done[:, self.order.argsort()]


def _sliced(value: Any) -> bool:
    return isinstance(value, Tensor) and (len(value) == 1 or not value.is_contiguous())


def checked_order(order: Tensor, features: int) -> Tensor:
    """Returns the order as int64 if it is a permutation of the features.

    Raises:
        ValueError: If it is not.
    """
    order = torch.as_tensor(order).long()
    if order.shape != (features,) or not torch.equal(order.sort().values, torch.arange(features, device=order.device)):
        raise ValueError(
            f"expected an order that is a permutation of {features} features, got {tuple(order.shape)} values"
        )
    return order


def _head(
    spline: AutoregressiveSpline,
    h: Tensor,
    u: Tensor,
    bias: Tensor,
    *weights: Tensor,
    ladj: bool,
    parameters: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor]]:
    """The output layer and the spline, group by group; `h` (B, H) and `u` (B, D) in the declared order."""
    made = spline.conditioner
    output, edges, dtype = made.output, made.edges, compute_dtype(bias)
    h, bias = h.to(dtype), bias.to(dtype)
    outs, diagonals, phis = [], [], []
    saved: list[Tensor] = []
    with torch.autocast(u.device.type, enabled=False):
        for lo, hi in spline.groups(len(u), u.device):
            parts = [
                torch.addmm(bias[output.rows(i)], output.inputs(i, h, u), weights[i].to(dtype)) for i in range(lo, hi)
            ]
            packed = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            size = edges[lo + 1] - edges[lo]
            phi = packed.view(-1, made.parameters_per_feature, size)
            x = u[:, edges[lo] : edges[hi]].reshape(-1, size)
            v, diagonal, kept = spline.univariate(phi, x, spline.bound, spline.inverse, ladj)
            outs.append(v.view(len(u), -1))
            if diagonal is not None:
                diagonals.append(diagonal.view(len(u), -1))
            if parameters:
                phis.append(packed)
            saved += kept
    return (
        torch.cat(outs, dim=1),
        torch.cat(diagonals, dim=1) if ladj else None,
        torch.cat(phis, dim=1) if parameters else None,
        saved,
    )


class _SplineHead(torch.autograd.Function):
    """The output layer and the spline as one node."""

    @staticmethod
    def forward(
        ctx: Any, spline: AutoregressiveSpline, ladj: bool, parameters: bool, h: Tensor, u: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        v, diagonal, phi, saved = _head(spline, h, u, *tensors, ladj=ladj, parameters=parameters)
        ctx.save_for_backward(h, u, *tensors, *saved)
        ctx.spline, ctx.dtype, ctx.count = spline, compute_dtype(tensors[0]), len(tensors)
        ctx.set_materialize_grads(False)
        return v, diagonal, phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_v: Tensor | None, grad_ladj: Tensor | None, grad_phi: Tensor | None) -> tuple[Any, ...]:
        spline, needs = ctx.spline, ctx.needs_input_grad[3:]
        h, u, bias, *rest = ctx.saved_tensors
        weights, saved = rest[: ctx.count - 1], rest[ctx.count - 1 :]
        made = spline.conditioner
        output, edges = made.output, made.edges
        hidden = h.to(ctx.dtype)
        grad_h = torch.zeros_like(h, dtype=torch.promote_types(h.dtype, torch.float32)) if needs[0] else None
        grad_u, grad_bias = torch.empty_like(u), torch.empty_like(bias)
        grad_weights: list[Tensor | None] = []
        groups = spline.groups(len(u), u.device)
        each = len(saved) // len(groups)
        for n, (lo, hi) in enumerate(groups):
            kept = tuple(saved[n * each : (n + 1) * each])
            columns = slice(edges[lo], edges[hi])
            size = edges[lo + 1] - edges[lo]
            gv, gl = (None if g is None else g[:, columns].reshape(-1, size) for g in (grad_v, grad_ladj))
            gx, gphi = spline.adjoint(kept, gv, gl, spline.bound, spline.inverse)
            grad_u[:, columns] = gx.view(len(u), -1)
            gphi = gphi.view(len(u), -1)
            if grad_phi is not None:
                gphi += grad_phi[:, output.rows(lo).start : output.rows(hi - 1).stop]
            grad_bias[output.rows(lo).start : output.rows(hi - 1).stop] = gphi.sum(0)
            gphi = gphi.to(ctx.dtype)
            size = gphi.shape[1] // (hi - lo)
            for j, i in enumerate(range(lo, hi)):
                g = gphi[:, j * size : (j + 1) * size]
                back = g @ weights[i].to(ctx.dtype).t()
                prefix = output.prefix[i]
                if grad_h is not None:
                    grad_h[:, :prefix] += back[:, :prefix]
                grad_u[:, edges[i] : edges[i + 1] - 1] += back[:, prefix:]
                needed = needs[3 + i]
                grad_weights.append(weight_gradient(output, i, g, output.inputs(i, hidden, u)) if needed else None)
        return (
            None,
            None,
            None,
            None if grad_h is None else grad_h.to(h.dtype),
            grad_u if needs[1] else None,
            grad_bias if needs[2] else None,
            *grad_weights,
        )


class _Implicit(torch.autograd.Function):
    r"""Gives a solution :math:`u` of :math:`f(u) = v` its gradient by the implicit function theorem.

    The adjoint solves :math:`J^T w = g`. :math:`J` is triangular in the declared order with a known diagonal, so that
    iterating on the rest ends after at most :math:`D` passes.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, u: Tensor, spline: AutoregressiveSpline, c: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, *(() if c is None else (c,)))
        ctx.spline = spline
        return u.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, *context = ctx.saved_tensors
        spline, c = ctx.spline, context[0] if context else None
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            v, diagonal, _ = spline.evaluate(u, c, dropout=False)
        assert diagonal is not None
        scale = diagonal.detach().exp()
        w = grad / scale
        for _ in range(u.shape[1]):
            (pulled,) = torch.autograd.grad(v, u, w, retain_graph=True)
            step = (grad - pulled) / scale
            w = w + step
            if bool((step.abs().amax() <= torch.finfo(w.dtype).eps * w.abs().amax()).item()):
                break
        return w, None, None, None


class AutoregressiveSplineTransform(Transform):
    r"""The transformation :math:`v = f(u \mid c)` of an :class:`AutoregressiveSpline`.

    Args:
        spline: The lazy transformation.
        c: The context, with shape (*, C), or :py:`None`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    sign = +1

    def __init__(self, spline: AutoregressiveSpline, c: Tensor | None) -> None:
        super().__init__()
        self.spline = spline
        self.c = c

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spline.extra_repr()})"

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Broadcasts `x` (*, D) with the context and flattens both to (B, D) and (B, C)."""
        made = self.spline.conditioner
        sizes = (x.shape[-1], 0 if self.c is None else self.c.shape[-1])
        if sizes != (made.features, made.context):
            raise ValueError(
                f"expected {made.features} features and {made.context} context features, got {sizes[0]} and {sizes[1]}"
            )
        if self.c is None:
            return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0), None
        x, c = broadcast(x, self.c, ignore=1)
        return x.reshape(-1, x.shape[-1]), c.reshape(-1, c.shape[-1])

    def _shaped(self, flat: Tensor, like: Tensor) -> Tensor:
        batch = like.shape[:-1]
        if self.c is not None:
            batch = torch.broadcast_shapes(batch, self.c.shape[:-1])
        return flat.reshape(*batch, *flat.shape[1:])

    def _call(self, x: Tensor) -> Tensor:
        v, _, _ = self.spline.evaluate(*self._flat(x), ladj=False)
        return self._shaped(v, x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs (*, D) and the log-determinant of the Jacobian (*,)."""
        v, diagonal, _ = self.spline.evaluate(*self._flat(x))
        assert diagonal is not None
        return self._shaped(v, x), self._shaped(diagonal.sum(1), x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the log-determinant of the Jacobian at `x`, without dropout, as the exact inverse."""
        _, diagonal, _ = self.spline.evaluate(*self._flat(x), dropout=False)
        assert diagonal is not None
        return self._shaped(diagonal.sum(1), x)

    def _inverse(self, y: Tensor) -> Tensor:
        flat, c = self._flat(y)
        u = self.spline.invert(flat, c)
        if torch.is_grad_enabled():
            v, _, _ = self.spline.evaluate(u, c, ladj=False, dropout=False)
            if v.requires_grad or flat.requires_grad:
                u = _Implicit.apply(flat - v, u, self.spline, c)
        return self._shaped(u, y)
