"""The student: an inverse autoregressive flow distilled from a teacher, which samples in one pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from calosim import rng
from calosim.flows import FlowChanges, prune
from calosim.models.base import fit_sample, joined, step_keys
from calosim.models.losses import CHANNEL_POWERS, StudentLosses, channel_loss, distillation, shower_center
from calosim.models.shower import FlowModel
from calosim.representations import RepresentationConfig, SplitConfig, from_plain
from calosim.representations.distillation import Paired

__all__ = ["Student"]

#: Training rows, at least, on which a narrower student learns to do without the units that it has not.
PRUNING_ROWS = 2048

#: Never changed.
LOSSES, AS_TEACHER = StudentLosses(), FlowChanges()


class Student(FlowModel):
    r"""Inverse autoregressive flow of a shower's image, trained on what its teacher does with data and with noise.

    Architecture and preprocessing are the teacher's unless given. The teacher is needed for training and validation
    only: it is no part of the module's parameters or of its checkpoint.

    Physics losses compare the image from the teacher's noise of a row, :math:`z^T(x)`, the only student image that is
    meant to equal the row's Monte Carlo image, with that image. For the channels both carry the row's dequantization
    noise, so that it drops out of the difference and a perfect student has no loss. For the shower's center the
    expected noise, a constant pedestal that would pull it towards the middle, is subtracted.

    Rows are weighted by ``batch["loss_weight"]`` in all losses and by ``batch["physics_weight"]`` in the physics losses,
    where a callback put them there.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        init_from: Run folder or checkpoint of the teacher; not needed for inference.
        flow: Settings of the flow that differ from the teacher's; without dropout unless given, since the targets are
            exact and never repeat.
        representation: The teacher's; for inference, where there is no teacher.
        physics: The teacher's; for inference, where there is no teacher.
        start: ``random`` weights; copies of the ``teacher``'s, whose conditioners read the other side of each
            transformation, however; or a student's run folder or checkpoint, whose weights are copied, or pruned if it is
            wider, see :func:`calosim.flows.prune`.
        losses: What it is trained on.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    Raises:
        ValueError: If the teacher does not fit: another detector, or parts that cannot be paired.
    """

    fast_likelihood = False  # where there is one, it is of a flow that is fast the other way

    def __init__(
        self,
        detector: str = "zn",
        init_from: str | None = None,
        flow: FlowChanges = AS_TEACHER,
        representation: RepresentationConfig | None = None,
        physics: bool | None = None,
        start: str = "random",
        losses: StudentLosses = LOSSES,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        teacher = None if init_from is None else FlowModel.load(init_from)
        known: dict[str, Any] = {"representation": SplitConfig(), "physics": True} if teacher is None else teacher.init
        given = {"representation": representation, "physics": physics}
        preprocessing: dict[str, Any] = {n: known[n] if value is None else value for n, value in given.items()}
        settings = preprocessing["representation"] = from_plain(preprocessing["representation"])
        size = settings.student_settings(known.get("flow"), flow)
        super().__init__(detector, size, **preprocessing, optimizer=optimizer, scheduler=scheduler, inverse=True)
        self.losses = losses
        # In a tuple, or it would be a submodule, with all that this means for checkpoint, optimizer and processes.
        self._teacher: tuple[FlowModel, ...] = ()
        self._forerunner: tuple[FlowModel, ...] = ()
        if teacher is not None:
            self._adopt(teacher, str(init_from), start)
            if not losses.weights():
                raise ValueError("expected at least one loss with a weight above 0, got none")

    # -- the teacher --------------------------------------------------------------------------------------------------

    def _adopt(self, teacher: FlowModel, source: str, start: str) -> None:
        """Checks a teacher against this student, copies its standardizations and keeps it, frozen."""
        if teacher.detector != self.detector:
            raise ValueError(
                f"{source}: expected a teacher of {self.detector.title}, got one of {teacher.detector.title}"
            )
        for name in ("representation", "physics"):
            if teacher.init[name] != self.init[name]:
                raise ValueError(
                    f"{source}: expected a student of the teacher's preprocessing, {name} {teacher.init[name]}, got "
                    f"{self.init[name]}"
                )
        pairing = self.representation.pairing(teacher.flow, self.flow)
        unpaired = pairing.unpaired(source)
        for space, part in product("xz", unpaired):
            if unpaired[part] and getattr(getattr(self.losses, space), part):
                raise ValueError(
                    f"{source}: expected a student that can be paired with its teacher, got {unpaired[part]}; set "
                    f"--model.losses.{space}.{part} 0, or choose the teacher's size"
                )
        self.features.load_state_dict(teacher.features.state_dict())
        self.representation.load_state_dict(teacher.representation.state_dict())
        if start == "teacher":
            try:
                pairing.copy()
            except (RuntimeError, ValueError):
                raise ValueError(
                    f"{source}: expected a student of the teacher's size to start from its weights; set --model.start random"
                ) from None
        elif start != "random":
            self._forerunner = (self._student_to_start_from(start),)
        # What the representation has of its own, local splits, is the teacher's and stays so.
        self.representation.requires_grad_(False)
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.ancestors = joined(*(model.lineage for model in (*self._teacher, *self._forerunner)))

    def _student_to_start_from(self, source: str) -> FlowModel:
        if not Path(source).exists():
            raise ValueError(
                f"unknown start {source!r}; expected random, teacher, or a student's run folder or checkpoint"
            )
        other = Student.load(source)
        theirs, ours = ({**m.init, **(m.init["flow"] or {})} for m in (other, self))
        for name in ("detector", "representation", "physics", "transforms", "bins", "bound", "permutation", "seed"):
            if theirs.get(name) != ours.get(name):
                raise ValueError(
                    f"{source}: expected a student to start from with {name} {ours.get(name)}, got {theirs.get(name)}"
                )
        for part in ("features", "representation"):
            mine = getattr(self, part).state_dict()
            if any(not torch.equal(value, mine[key]) for key, value in getattr(other, part).state_dict().items()):
                raise ValueError(
                    f"{source}: expected a student to start from that was distilled from a teacher of the same standardization "
                    f"of {part}, got another"
                )
        wide, narrow = theirs.get("hidden", []), ours.get("hidden", [])
        if len(wide) != len(narrow) or any(a < b for a, b in zip(wide, narrow, strict=True)):
            raise ValueError(
                f"{source}: expected a student to start from with hidden layers not narrower than {narrow}, got {wide}"
            )
        return other

    def _start(self, forerunner: FlowModel) -> None:
        """Takes over another student's weights, pruned on noise and contexts of training rows if it is wider."""
        theirs, ours = forerunner.init["flow"], self.init["flow"]
        if theirs is None or all(theirs[name] == ours[name] for name in ("hidden", "context_share")):
            self.flow.load_state_dict(forerunner.flow.state_dict())
            return
        rows, particles, images = fit_sample(self.trainer.datamodule)  # type: ignore[attr-defined]
        most = max(PRUNING_ROWS, 4 * max(ours["hidden"]))
        some = torch.linspace(0, len(rows) - 1, min(len(rows), most)).long()
        noise = rng.normal(rng.row_keys(rows[some], rng.FIT_STREAM, 1), self.representation.size)
        prune(forerunner.flow, self.flow, noise, self.context(particles[some], images[some].flatten(1).sum(1)))

    @property
    def teacher(self) -> FlowModel:
        """The teacher, frozen, where the student is.

        Raises:
            ValueError: If there is none.
        """
        if not self._teacher:
            raise ValueError(
                "expected a teacher to learn from: --model.init_from RUN_FOLDER, got none; what is fine-tuned is the teacher, of "
                "which a student is distilled, which may begin with this one, --model.start"
            )
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Student:
        # What moves or casts the student (`to`, `cuda`, `double`, Lightning) takes the teacher along.
        for teacher in self._teacher if recurse else ():
            teacher._apply(fn)
        return super()._apply(fn, recurse)

    def setup(self, stage: str) -> None:
        """Refuses to train without a teacher."""
        if stage in ("fit", "validate"):
            _ = self.teacher
        super().setup(stage)
        if stage == "fit" and self._forerunner:
            self._start(self._forerunner[0])
            self._forerunner = ()

    # -- losses -------------------------------------------------------------------------------------------------------

    @property
    def row_weights(self) -> tuple[str, ...]:
        """Which of the weights that a callback may put into a batch change anything."""
        return ("loss_weight", *(("physics_weight",) if self.losses.physics() else ()))

    def parts(self, batch: dict[str, Tensor], step: int = -1) -> dict[str, Tensor]:
        """The losses of each row: their weighted sum, and each without its weight.

        Args:
            batch: A batch of :class:`~calosim.data.datamodule.RootDataModule`. In training, its ``loss_weight`` and
                ``physics_weight`` count, if a callback put them there.
            step: The training step, which keys the noise and ramps the channel loss; -1 for validation.

        Returns:
            ``loss``; for each name of :meth:`~calosim.models.losses.StudentLosses.weights` the losses with shape (B,):
            ``x_outputs`` and so on, ``channel``, ``center``; and ``kl``, the contribution to the divergence of the student from
            the teacher in the unit of the likelihood, if anything starts from noise.
        """
        weights, pairing = self.losses.weights(), self.representation.pairing(self.teacher.flow, self.flow)
        images, context, keys = self.inputs(batch, step)
        parts: dict[str, Tensor] = {}
        if self.losses.physics() or any(name.startswith("x_") for name in weights):
            found = pairing.from_data(images, context, keys)
            parts |= self._compared("x", found)
            parts |= self._physics(batch, cast(Tensor, found.data), found.made)
        if any(name.startswith("z_") for name in weights):
            z = rng.normal(step_keys(batch["rows"], rng.TRAINING_STREAM, step), self.representation.size)
            found = pairing.from_noise(z, context, images.flatten(1).sum(1))
            parts |= self._compared("z", found)
            parts["kl"] = cast(Tensor, found.kl)
        training = step >= 0
        total = self.objective(parts, batch if training else None, step if training else None)
        return {"loss": total, **parts}

    def objective(
        self, parts: dict[str, Tensor], batch: dict[str, Tensor] | None = None, step: int | None = None
    ) -> Tensor:
        """The weighted sum of the losses of each row, shape (B,).

        Args:
            parts: The losses, from :meth:`parts`.
            batch: The batch whose ``loss_weight`` and ``physics_weight`` count, if it has them; rows weigh 1 if not given.
            step: The training step, for the ramp of the channel loss.
        """
        rows = batch or {}
        total = torch.zeros_like(next(iter(parts.values())))
        for name, weight in self.losses.weights(step).items():
            if name in parts:
                of_rows = rows.get("physics_weight", 1.0) if name in self.losses.physics() else 1.0
                total = total + weight * of_rows * parts[name]
        return total * rows.get("loss_weight", 1.0)

    def _compared(self, space: str, found: Paired) -> dict[str, Tensor]:
        """The parts of a distillation loss."""
        # A single transformation has no intermediate states.
        return {
            f"{space}_{part}": distillation(*pair)
            for part, pair in found.pairs.items()
            if getattr(getattr(self.losses, space), part) and pair[0]
        }

    def _physics(self, batch: dict[str, Tensor], x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The losses of images: from the points of the data and of the student, both with shape (B, D)."""
        parts: dict[str, Tensor] = {}
        photon_sum = batch["images"].flatten(1).sum(1).to(made.dtype)
        channel, expected = self.losses.channel, self.representation.expected
        if channel.weight:
            divisor = photon_sum.clamp(min=1) ** CHANNEL_POWERS[channel.scale]
            images = expected(made, photon_sum), expected(x, photon_sum)
            parts["channel"] = channel_loss(*images, self.detector, channel.convention, divisor)
        if self.losses.center:
            images_without_noise = expected(made, photon_sum, noise=False)
            parts["center"] = shower_center(images_without_noise, batch["particles"], self.detector)
        return parts
