"""What of a student is paired with its teacher: flows of points, or networks that split photons."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from calosim import rng
from calosim.flows import InverseSplits, MaskedSplits, mixture, trace, units
from calosim.flows.inverse import log_density, share_of_noise
from calosim.models.distillation import StudentLosses, unpaired_parts
from calosim.representations import Representation

__all__ = ["CountPairing", "Paired", "PointPairing"]

#: Probabilities are kept that far from 0 and 1 before they become normal noise.
_EDGE = 1e-12


class Paired(NamedTuple):
    """A teacher beside its student.

    Attributes:
        pairs: Tensors (B, *) of the teacher and of the student, by what they are: ``outputs``, ``intermediate``,
            ``parameters``.
        data: Coordinates (B, D) that both began with, in the order of the coordinates; None if they began with noise.
        made: The student's coordinates (B, D), in that order too.
        kl: Contribution to the divergence of the student from the teacher in nats, (B,); None if they began with data.
    """

    pairs: dict[str, tuple[list[Tensor], list[Tensor]]]
    data: Tensor | None
    made: Tensor
    kl: Tensor | None


class PointPairing:
    """A masked and an inverse autoregressive flow of points, whose transformations correspond one by one.

    Args:
        representation: The student's coordinates.
        teacher: The masked flow.
        student: The inverse flow.
    """

    def __init__(self, representation: Representation, teacher: Any, student: Any):
        self.representation, self.teacher, self.student = representation, teacher, student

    def check(self, losses: StudentLosses, source: str) -> None:
        """Refuses losses of parts that cannot be paired.

        Raises:
            ValueError: If so, or if the teacher is a student.
        """
        theirs, ours = ([u for _, u in units(flow)] for flow in (self.teacher, self.student))
        if any(u.inverse for u in theirs):
            raise ValueError(f"{source}: expected a teacher, a masked autoregressive flow; got a student")
        differences = unpaired_parts(theirs, ours)
        for space in "xz":
            for part in ("intermediate", "parameters"):
                if getattr(getattr(losses, space), part) and differences[part]:
                    raise ValueError(
                        f"{source}: expected a student that can be paired with its teacher, got {differences[part]}; set "
                        f"--model.losses.{space}.{part} 0, or choose the teacher's size"
                    )

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
            kl = (made.ladj - taught.ladj + normals) / self.representation.per
        return Paired(pairs, None, made.states[0], kl)


class CountPairing:
    """A masked network that reads counts, and one that reads the noise that the first makes of them.

    Args:
        representation: The student's coordinates.
        teacher: The masked network.
        student: The one that reads noise.
    """

    def __init__(self, representation: Any, teacher: MaskedSplits, student: InverseSplits):
        self.representation, self.teacher, self.student = representation, teacher, student

    def check(self, losses: StudentLosses, source: str) -> None:
        """Refuses a student as a teacher.

        Raises:
            ValueError: If it is one.
        """
        if not isinstance(self.teacher, MaskedSplits):
            raise ValueError(f"{source}: expected a teacher, a masked autoregressive flow; got a student")

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
        return Paired(pairs, None, self._point(y), kl.to(context.dtype) / self.representation.per)

    def _noise(self, y: Tensor, parameters: Tensor) -> Tensor:
        return torch.special.ndtri(mixture.cdf(y, parameters.double()).clamp(_EDGE, 1 - _EDGE))

    def _point(self, y: Tensor) -> Tensor:
        """Coordinates of shares; beyond a few standard deviations their gradients say nothing."""
        return self._ordered(torch.special.ndtri(torch.sigmoid(y).clamp(_EDGE, 1 - _EDGE)))

    def _ordered(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.representation.rank)

    def _pairs(
        self, theirs: Tensor, ours: Tensor, taught: Tensor, made: Tensor
    ) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        # There is one transformation, and nothing between its ends.
        outputs = [theirs.to(made.dtype)], [ours.to(made.dtype)]
        return {"outputs": outputs, "intermediate": ([], []), "parameters": ([taught.flatten(1)], [made.flatten(1)])}
