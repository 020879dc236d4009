"""The settings of a flow, declared once for the builders, the models and the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from typing import Any, Literal, NamedTuple, Self, get_type_hints

from torch import nn

__all__ = ["FlowChanges", "FlowConfig", "Permutation", "Stage"]

Permutation = Literal["alternate", "reverse", "random"]


@dataclass(frozen=True)
class FlowConfig:
    """Size and shape of an autoregressive spline flow; the defaults are the published recipe but for the orders.

    Attributes:
        transforms: Number of autoregressive transformations.
        hidden: Widths of the hidden layers of each conditioner.
        bins: Bins of the splines; 0 for affine maps instead of splines, which no bound limits.
        bound: The splines act on [-bound, bound]; features beyond are not transformed.
        dropout: Probability of dropping a hidden unit in training.
        context_share: Share of hidden units that see the context only, and are seen by all features. In narrow networks
            the first features of the order otherwise see the context through a few units only.
        permutation: How the orders of the transformations follow each other: ``alternate`` (reversal and random
            permutation in turn, as published), ``reverse`` (an order and its reversal) or ``random``.
        seed: Seed of the random permutations. Weights are drawn from torch's global generator.

    References:
        majerzemilia/zdc-fast-simulations (the reference training)
    """

    transforms: int = 4
    hidden: tuple[int, ...] = (1452, 1452)
    bins: int = 8
    bound: float = 14.0
    dropout: float = 0.05
    context_share: float = 0.0
    permutation: Permutation = "reverse"
    seed: int = 0

    def to_plain(self) -> dict[str, Any]:
        """The settings as plain values, for checkpoints and records."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_plain(cls, values: Self | dict[str, Any]) -> Self:
        """Settings from plain values; settings are returned as they are."""
        return cls(**{**values, "hidden": tuple(values["hidden"])}) if isinstance(values, dict) else values

    def changed(self, changes: Any) -> Self:
        """These settings but for those that `changes`, of type :data:`FlowChanges`, has."""
        given = {f.name: getattr(changes, f.name) for f in fields(changes)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


_HINTS = get_type_hints(FlowConfig)

#: The same settings, each None unless it is to differ from those of another flow.
FlowChanges: Any = make_dataclass(
    "FlowChanges", [(f.name, _HINTS[f.name] | None, None) for f in fields(FlowConfig)], frozen=True
)
FlowChanges.__doc__ = FlowConfig.__doc__
FlowChanges.__module__ = __name__


class Stage(NamedTuple):
    """What thaws together when a model is fine-tuned step by step.

    Attributes:
        parameters: The parameters of a unit but for those of its first layers.
        context: Those of its first layers, which see the context.
    """

    parameters: list[nn.Parameter]
    context: list[nn.Parameter]
