r"""Distillation of a masked into an inverse autoregressive flow: what the two make of data and of noise, side by side.

Both flows map data :math:`x = s_0` through states :math:`s_1 \dots s_{n-1}` to noise :math:`z = s_n`. The teacher is fast
from data to noise, the student from noise to data, and a step of training uses each in its fast direction only. With
:math:`\theta_k` the conditioners' outputs (spline parameters) of transformation k and :math:`\overline{|\cdot|^2}` the mean
square over features, the two losses of a row are

.. math::
    \text{loss}_x &: \quad x \xrightarrow{\text{teacher}} (s^T, \theta^T), \; z^T = s_n^T
        \xrightarrow{\text{student}} (s^S, \theta^S), \quad s_n^S = z^T \\
    &\phantom{:} \quad L_x = a \, \overline{|x - s_0^S|^2} + b \sum_{k=1}^{n-1} \overline{|s_k^T - s_k^S|^2}
        + c \sum_{k=1}^{n} \overline{|\theta_k^T - \theta_k^S|^2} \\
    \text{loss}_z &: \quad z \sim N(0, 1) \xrightarrow{\text{student}} (s^S, \theta^S), \; x^S = s_0^S
        \xrightarrow{\text{teacher}} (s^T, \theta^T), \quad s_0^T = x^S \\
    &\phantom{:} \quad L_z = a' \, \overline{|z - s_n^T|^2} + b' \sum_{k=1}^{n-1} \overline{|s_k^T - s_k^S|^2}
        + c' \sum_{k=1}^{n} \overline{|\theta_k^T - \theta_k^S|^2}

where each is named after the space its outputs are compared in. In the second, gradients pass through the frozen teacher.

References:
    | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
    | Inverse Autoregressive Flows for Zero Degree Calorimeter fast simulation (Majerz et al., 2025),
      https://arxiv.org/abs/2512.20346
    | Towards Fast, ML-Based Calorimeter Simulations in ALICE (Majerz et al., slides)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from calosim import rng
from calosim.flows import InverseSplits, MaskedSplits, mixture, trace, units
from calosim.flows.splits import log_density, share_of_noise

__all__ = ["CountPairing", "Paired", "PointPairing", "unpaired_parts"]


def unpaired_parts(teacher: list[Any], student: list[Any]) -> dict[str, str]:
    """In words, why intermediate states and parameters cannot be paired; empty where they can."""
    if len(teacher) != len(student):
        return dict.fromkeys(
            ("intermediate", "parameters"), f"{len(student)} transforms for the teacher's {len(teacher)}"
        )
    words = {"intermediate": "", "parameters": ""}
    for t, s in zip(teacher, student, strict=True):
        if not torch.equal(t.order, s.order):
            words = dict.fromkeys(words, "other pixel orders than the teacher's")
        elif t.bins != s.bins or t.conditioner.edges != s.conditioner.edges:
            words["parameters"] = (
                f"{s.bins} bins in {len(s.conditioner.edges) - 1} chunks for the teacher's {t.bins} in "
                f"{len(t.conditioner.edges) - 1}"
            )
    return words


#: Probabilities are kept that far from 0 and 1 before they become normal noise.
_EDGE = 1e-12


class Paired(NamedTuple):
    """A teacher beside its student.

    Attributes:
        pairs: Tensors (B, *) of the teacher and of the student, by what they are: ``outputs``, ``intermediate``,
            ``parameters``.
        data: Points (B, D) of the representation that both began with; None if they began with noise.
        made: The student's points (B, D).
        kl: Contribution to the divergence of the student from the teacher, in the unit of the likelihood, (B,); None if they
            began with data.
    """

    pairs: dict[str, tuple[list[Tensor], list[Tensor]]]
    data: Tensor | None
    made: Tensor
    kl: Tensor | None


class PointPairing:
    """A masked and an inverse autoregressive flow of points, whose transformations correspond one by one.

    Args:
        representation: The student's.
        teacher: The masked flow.
        student: The inverse flow.
    """

    def __init__(self, representation: Any, teacher: Any, student: Any):
        self.representation, self.teacher, self.student = representation, teacher, student

    def unpaired(self, source: str) -> dict[str, str]:
        """In words, why intermediate states and parameters cannot be paired; empty where they can.

        Raises:
            ValueError: If the teacher is a student.
        """
        theirs, ours = ([u for _, u in units(flow)] for flow in (self.teacher, self.student))
        if any(u.inverse for u in theirs):
            raise ValueError(f"{source}: expected a teacher, a masked autoregressive flow; got a student")
        return unpaired_parts(theirs, ours)

    def copy(self) -> None:
        """Gives the student the teacher's conditioners, which read the other side of each transformation, however.

        Raises:
            ValueError, RuntimeError: If they have another size.
        """
        # Both flows hold the same modules in the same order; the student's are wrapped as inverses.
        for (_, theirs), (_, ours) in zip(units(self.teacher), units(self.student), strict=True):
            ours.load_state_dict(theirs.state_dict())

    def from_data(self, images: Tensor, context: Tensor, keys: Tensor) -> Paired:
        """Images (B, nx, ny) through the teacher, its noise through the student."""
        x, _ = self.representation.encode(images, keys)
        with torch.no_grad():
            taught = trace(self.teacher, x, context)
        made = trace(self.student, taught.states[-1], context)
        pairs = {
            "outputs": ([taught.states[0]], [made.states[0]]),
            "intermediate": (taught.states[1:-1], made.states[1:-1]),
            "parameters": (taught.parameters, made.parameters),
        }
        return Paired(pairs, x, made.states[0], None)

    def from_noise(self, z: Tensor, context: Tensor, photon_sum: Tensor) -> Paired:
        """Noise (B, D) through the student, what it makes through the teacher."""
        z = z.to(context)
        made = trace(self.student, z, context)
        taught = trace(self.teacher, made.states[0], context)
        pairs = {
            "outputs": ([taught.states[-1]], [made.states[-1]]),
            "intermediate": (taught.states[1:-1], made.states[1:-1]),
            "parameters": (taught.parameters, made.parameters),
        }
        with torch.no_grad():
            normals = (taught.states[-1].square() - z.square()).sum(1) / 2
            kl = (made.ladj - taught.ladj + normals) / self.representation.size
        return Paired(pairs, None, made.states[0], kl)


class CountPairing:
    """A masked network that reads counts, and one that reads the noise that the first makes of them.

    Args:
        representation: The student's.
        teacher: The masked network.
        student: The one that reads noise.
    """

    def __init__(self, representation: Any, teacher: MaskedSplits, student: InverseSplits):
        self.representation, self.teacher, self.student = representation, teacher, student

    def unpaired(self, source: str) -> dict[str, str]:
        """Nothing that there is cannot be paired, see :meth:`PointPairing.unpaired`."""
        if not isinstance(self.teacher, MaskedSplits):
            raise ValueError(f"{source}: expected a teacher, a masked autoregressive flow; got a student")
        return {}

    def copy(self) -> None:
        """Gives the student the teacher's layers but the first, which reads something else."""
        theirs, ours = self.teacher.state_dict(), self.student.state_dict()
        self.student.load_state_dict(
            {name: theirs[name] if name.split(".")[0] != "first" else ours[name] for name in ours}
        )

    def from_data(self, images: Tensor, context: Tensor, keys: Tensor) -> Paired:
        """Images (B, nx, ny) through the teacher, its noise through the student; outputs are compared as noise.

        The student's share of a node's photons at the teacher's noise is the teacher's exactly if both give the data's
        share the same noise.
        """
        k, n = self.representation.counts(images)
        u = rng.uniform_at(keys.unsqueeze(1), torch.arange(self.representation.size, device=k.device))
        share = (k.double() + u) / (n + 1)
        y = torch.logit(share)
        with torch.no_grad():
            taught = self.teacher.parameters_of(k, n, context)
            z = self._noise(y, taught)
        made = self.student.parameters_of(z, context)
        pairs = self._pairs(z, self._noise(y, made), taught, made)
        found = share_of_noise(torch.special.ndtr(z), made)
        return Paired(pairs, self._ordered(torch.special.ndtri(share)), self._point(found), None)

    def from_noise(self, z: Tensor, context: Tensor, photon_sum: Tensor) -> Paired:
        """Noise (B, D) through the student; the teacher reads the counts that come out."""
        z = z.double()
        made = self.student.parameters_of(z, context)
        y = share_of_noise(torch.special.ndtr(z).clamp(_EDGE, 1 - _EDGE), made)
        with torch.no_grad():
            k, n = self.student.hand_down(photon_sum.to(torch.int64), torch.sigmoid(y))
            taught = self.teacher.parameters_of(k, n, context)
            kl = (log_density(y, made.double()) - log_density(y, taught.double())).sum(1)
        pairs = self._pairs(self._noise(y, taught), z, taught, made)
        return Paired(pairs, None, self._point(y), kl.to(context.dtype))

    def _noise(self, y: Tensor, parameters: Tensor) -> Tensor:
        return torch.special.ndtri(mixture.cdf(y, parameters.double()).clamp(_EDGE, 1 - _EDGE))

    def _point(self, y: Tensor) -> Tensor:
        """Points of shares; beyond a few standard deviations their gradients say nothing."""
        return self._ordered(torch.special.ndtri(torch.sigmoid(y).clamp(_EDGE, 1 - _EDGE)))

    def _ordered(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.representation.rank)

    def _pairs(
        self, theirs: Tensor, ours: Tensor, taught: Tensor, made: Tensor
    ) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        # There is one transformation, and nothing between its ends.
        outputs = [theirs.to(made.dtype)], [ours.to(made.dtype)]
        return {"outputs": outputs, "intermediate": ([], []), "parameters": ([taught.flatten(1)], [made.flatten(1)])}
