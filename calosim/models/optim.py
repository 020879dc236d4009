r"""Optimizers and schedules: steps along orthogonal matrices, and learning rates that know how long the training is.

A step of a weight matrix moves all its singular directions equally far, the rare as the frequent: with momentum
:math:`M = U \Sigma V^T` it goes nearly along :math:`U V^T`, by a few applications of an odd polynomial that takes singular
values to about one. In float32: torch's own class computes them in bfloat16, which takes a CPU longer than the rest of a step.

References:
    | Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024), https://kellerjordan.github.io/posts/muon
    | Muon is scalable for LLM training (Liu et al., 2025), https://arxiv.org/abs/2502.16982
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Muon", "WarmupCosine", "orthogonal"]


class WarmupCosine(LRScheduler):
    """Rises linearly, then falls along half a cosine until the end of the training.

    Args:
        optimizer: The optimizer.
        warmup_steps: Steps until the full learning rate is reached; at most a quarter of the training.
        final: What is left of it at the end, from 0 to 1.
        total_steps: Steps of the training; those that the trainer will take (max_epochs, max_steps) if not given. A resumed
            training that is to become longer goes on along its new curve.
        every: ``step``: a step is a batch; ``epoch``: a step is an epoch.
        last_epoch: The step to go on from; -1 begins anew.

    Attributes:
        share: The share of the training that is done, where something else than steps ends it, such as
            :class:`callbacks.ProcessorTime`; without ``total_steps`` it is what counts.

    Raises:
        ValueError: If an argument is out of its range.
    """

    share: float | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 50,
        final: float = 0.04,
        total_steps: int | None = None,
        every: Literal["step", "epoch"] = "step",
        last_epoch: int = -1,
    ):
        if every not in ("step", "epoch"):
            raise ValueError(f"expected every step or epoch, got {every!r}")
        if warmup_steps < 0 or not 0 <= final <= 1 or (total_steps is not None and total_steps < 1):
            raise ValueError(
                "expected warmup_steps of at least 0, final in [0, 1] and total_steps of at least 1, "
                f"got {warmup_steps}, {final} and {total_steps}"
            )
        self.warmup_steps, self.final, self.total_steps, self.every = warmup_steps, final, total_steps, every
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in a step."""
        warmup = self.warmup_steps if self.total_steps is None else min(self.warmup_steps, self.total_steps // 4)
        rise = min(1.0, (step + 1) / (warmup + 1))
        done = self.share if self.total_steps is None else min(1.0, step / self.total_steps)
        if done is None:
            return rise
        return rise * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the step that was reached, along the curve that is asked for now."""
        mine = {name: getattr(self, name) for name in ("warmup_steps", "final", "total_steps", "every")}
        super().load_state_dict({**state_dict, **mine})
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the parameter groups."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


#: The polynomial a x + b x^3 + c x^5: steep at 0, and for x in (0, 1] it stays near 1 when it is applied again (Jordan et al.).
POLYNOMIAL = 3.4445, -4.7750, 2.0315
#: Matrices with fewer rows or columns are no hidden layers.
SMALLEST = 14


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Takes singular values to about one.

    Args:
        matrices: With shape (B, rows, columns), no more rows than columns.
        steps: Applications of the polynomial.

    Returns:
        Matrices of the same shape and singular vectors. Singular values are between 0.6 and 1.3, but for those that were less
        than about a five-hundredth of the matrix's norm, which are less; a matrix of zeros stays so.
    """
    a, b, c = POLYNOMIAL
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for the weights of hidden layers, Adam's for everything else.

    Hidden layers are the matrices with at least 14 rows and columns, but for those that ``others`` names: what a
    network ends with learns better from Adam. Layers have names if parameters come with theirs.

    Args:
        params: Parameters, or pairs of their names and them.
        lr: Learning rate of Adam.
        matrix_factor: The learning rate of hidden layers, over ``lr``: a step's singular values, times the root of rows over
            columns where there are more rows.
        momentum: Share of the old in the momentum of hidden layers, which is Nesterov's.
        matrix_decay: Weight decay of hidden layers: a step takes this share of their weights, times their
            learning rate. Not called weight_decay, which another optimizer that replaces this one would take over.
        betas: Of Adam.
        eps: Of Adam.
        others: Names of layers and of modules whose matrices are Adam's too: a pixel flow's conditioner holds zeros where it is
            masked, which orthogonal steps would fill.
        fused: Whether Adam's steps are one kernel.

    Raises:
        ValueError: If a number is out of its range, or there are no parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        lr: float = 6e-3,
        matrix_factor: float = 3.3,
        momentum: float = 0.95,
        matrix_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        others: Sequence[str] = ("output", "skip", "from_context", "conditioner"),
        fused: bool = True,
    ):
        shares = momentum, *betas
        if not (
            all(number >= 0 for number in (lr, matrix_factor, matrix_decay, eps)) and all(0 <= x < 1 for x in shares)
        ):
            raise ValueError(
                "expected lr, matrix_factor, matrix_decay and eps of at least 0, momentum and betas in [0, 1), "
                f"got {lr}, {matrix_factor}, {matrix_decay}, {eps}, {momentum} and {betas}"
            )
        named: list[tuple[str, Tensor]] = [pair if isinstance(pair, tuple) else ("", pair) for pair in params]
        if not named:
            raise ValueError("expected parameters, got none")

        def hidden(name: str, p: Tensor) -> bool:
            return p.ndim == 2 and min(p.shape) >= SMALLEST and not set(name.split(".")) & set(others)

        groups: list[dict[str, Any]] = [
            {"params": [pair for pair in named if not hidden(*pair)], "lr": lr, "momentum": None},
            {
                "params": [pair for pair in named if hidden(*pair)],
                "lr": lr * matrix_factor,
                "momentum": momentum,
                "weight_decay": matrix_decay,
            },
        ]
        if not all(name for name, _ in named):
            groups = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
        defaults = {"lr": lr, "weight_decay": 0.0, "betas": tuple(betas), "eps": eps, "fused": fused}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes a step of all parameters that have gradients; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if group["momentum"] is None:
                self._adam(moved, group)
            else:
                self._turn(moved, group)
        return loss

    def _adam(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        for p in moved:
            if not self.state[p]:
                means = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                self.state[p] = {"step": torch.zeros((), device=p.device if group["fused"] else "cpu"), **means}
        kept = [self.state[p] for p in moved]
        adam(
            moved,
            [p.grad for p in moved],  # type: ignore[misc]
            [state["exp_avg"] for state in kept],
            [state["exp_avg_sq"] for state in kept],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in kept],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _turn(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        """Steps of hidden layers; matrices of one shape are turned together, whichever way they lie."""
        alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in moved:
            alike[tuple(sorted(p.shape))].append(p)
        for matrices in alike.values():
            ahead = []
            for p in matrices:
                assert p.grad is not None
                if not self.state[p]:
                    self.state[p] = {"mean": torch.zeros_like(p)}
                mean = self.state[p]["mean"].lerp_(p.grad, 1 - group["momentum"])
                ahead.append(_lying(p.grad.lerp(mean, group["momentum"])))
            for p, turned in zip(matrices, orthogonal(torch.stack(ahead)), strict=True):
                tall = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(turned.mT if p.shape[0] > p.shape[1] else turned, alpha=-group["lr"] * tall)


def _lying(matrix: Tensor) -> Tensor:
    """A matrix or its transpose, with no more rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
