r"""The student: an inverse autoregressive flow distilled from a teacher, which samples in one pass.

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

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from calosim import draws
from calosim.detectors import Convention
from calosim.flows import iaf, prune
from calosim.flows.build import Permutation, Trace, trace, units
from calosim.models.base import fit_sample, step_keys
from calosim.models.distillation import (
    ALL_PARTS,
    CHANNEL_POWERS,
    ChannelScale,
    LossWeights,
    plain_weights,
    unpaired_parts,
)
from calosim.models.losses import channel_loss, distillation, shower_center
from calosim.models.shape import ShapeModule
from calosim.models.teacher import Teacher

__all__ = ["Student"]

#: Training rows, at least, on which a narrower student learns to do without the units that it has not.
PRUNING_ROWS = 2048


class Student(ShapeModule):
    r"""Inverse autoregressive flow of the shower's shape, trained on what its teacher does with data and with noise.

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
        transforms: Number of autoregressive transforms.
        hidden: Widths of the hidden layers.
        bins: Bins of the splines; 0 for an affine flow.
        bound: The splines act on [-bound, bound].
        permutation: How pixel orders follow each other, see :class:`~calosim.models.teacher.Teacher`.
        context_share: Share of hidden units that see the primary and the photon sum only.
        flow_seed: Seed of the random permutations.
        noise: Width of the dequantization noise in photons; the teacher's.
        alpha: Squeezing of the shape before the logit; the teacher's.
        standardize: Whether logits are standardized per pixel; the teacher's.
        physics: Whether derived columns join the context; the teacher's.
        start: ``random`` weights; copies of the ``teacher``'s, whose conditioners read the other side of each
            transformation, however; or a student's run folder or checkpoint, whose weights are copied, or pruned if it is
            wider, see :func:`calosim.flows.prune`.
        loss_x: Weights of the loss that starts from data.
        loss_z: Weights of the loss that starts from noise.
        channel_weight: Weight of the channel loss.
        channel_warmup_steps: The channel loss is ramped up linearly over that many steps; not in validation.
        channel_scale: What differences of channels are divided by: ``photons`` (1), ``poisson`` (the root of the row's
            photon sum) or ``relative`` (the photon sum).
        channel_convention: The channel convention, see :meth:`calosim.detectors.Detector.masks`.
        center_weight: Weight of the distance of the shower's center from the expected one, per cm; for FoCal-H.
        dropout: Dropout probability in the conditioners; none by default, since the targets are exact and never repeat.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    Raises:
        ValueError: If the teacher does not fit: another detector or preprocessing, or parts that cannot be paired.
    """

    def __init__(
        self,
        detector: str = "zn",
        init_from: str | None = None,
        transforms: int | None = None,
        hidden: tuple[int, ...] | None = None,
        bins: int | None = None,
        bound: float | None = None,
        permutation: Permutation | None = None,
        context_share: float | None = None,
        flow_seed: int | None = None,
        noise: float | None = None,
        alpha: float | None = None,
        standardize: bool | None = None,
        physics: bool | None = None,
        start: str = "random",
        loss_x: LossWeights = ALL_PARTS,
        loss_z: LossWeights = ALL_PARTS,
        channel_weight: float = 0.0,
        channel_warmup_steps: int = 0,
        channel_scale: ChannelScale = "poisson",
        channel_convention: Convention = "paper",
        center_weight: float = 0.0,
        dropout: float = 0.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        teacher = None if init_from is None else ShapeModule.load(init_from)
        known = (
            {n: p.default for n, p in inspect.signature(Teacher).parameters.items()}
            if teacher is None
            else teacher.init
        )
        preprocessing = _filled(known, noise=noise, alpha=alpha, standardize=standardize, physics=physics)
        architecture = _filled(
            known,
            transforms=transforms,
            hidden=hidden,
            bins=bins,
            bound=bound,
            permutation=permutation,
            context_share=context_share,
            flow_seed=flow_seed,
        )
        architecture["hidden"] = list(architecture["hidden"])
        super().__init__(detector, optimizer, scheduler, **preprocessing, **architecture, dropout=dropout)
        sizes = {k: v for k, v in architecture.items() if k != "flow_seed"}
        self.flow = iaf(
            self.detector.pixels, self.features.width, **sizes, dropout=dropout, seed=architecture["flow_seed"]
        )
        if channel_scale not in get_args(ChannelScale):
            raise ValueError(
                f"unknown channel scale {channel_scale!r}; expected one of {', '.join(get_args(ChannelScale))}"
            )
        self.distilled = {"x": plain_weights(loss_x), "z": plain_weights(loss_z)}
        self.channel_weight, self.channel_warmup_steps = channel_weight, channel_warmup_steps
        self.channel_scale, self.channel_convention = channel_scale, channel_convention
        self.center_weight = center_weight
        # In a tuple, or it would be a submodule, with all that this means for checkpoint, optimizer and processes.
        self._teacher: tuple[ShapeModule, ...] = ()
        self._forerunner: tuple[ShapeModule, ...] = ()
        if teacher is not None:
            self._adopt(teacher, str(init_from), start)
        if teacher is not None and not self.weights():
            raise ValueError("expected at least one loss with a weight above 0, got none")
        self.val_parts = nn.ModuleDict({name: MeanMetric() for name in ("loss", "kl", *self.weights())})

    # -- the teacher --------------------------------------------------------------------------------------------------

    def _adopt(self, teacher: ShapeModule, source: str, start: str) -> None:
        """Checks a teacher against this student, copies its standardizations and keeps it, frozen."""
        if teacher.detector != self.detector:
            raise ValueError(
                f"{source}: expected a teacher of {self.detector.title}, got one of {teacher.detector.title}"
            )
        for name in ("noise", "alpha", "standardize", "physics"):
            if teacher.init[name] != self.init[name]:
                raise ValueError(
                    f"{source}: expected a student of the teacher's preprocessing, {name} {teacher.init[name]}, got "
                    f"{self.init[name]}"
                )
        theirs, ours = ([u for _, u in units(m.flow)] for m in (teacher, self))
        if any(u.inverse for u in theirs):
            raise ValueError(
                f"{source}: expected a teacher, a masked autoregressive flow; got a {type(teacher).__name__}"
            )
        differences = unpaired_parts(theirs, ours)
        for space, weights in self.distilled.items():
            for part in ("intermediate", "parameters"):
                if weights[part] and differences[part]:
                    raise ValueError(
                        f"{source}: expected a student that can be paired with its teacher, got {differences[part]}; set "
                        f"--model.loss_{space}.{part} 0, or choose the teacher's size"
                    )
        self.features.load_state_dict(teacher.features.state_dict())
        self.logits.load_state_dict(teacher.logits.state_dict())
        if start == "teacher":
            self._copy_conditioners(teacher, source)
        elif start != "random":
            self._forerunner = (self._student_to_start_from(start),)
        self._teacher = (teacher.eval().requires_grad_(False),)

    def _copy_conditioners(self, teacher: ShapeModule, source: str) -> None:
        try:
            # Both flows hold the same modules in the same order; the student's are wrapped as inverses.
            for (_, theirs), (_, ours) in zip(units(teacher.flow), units(self.flow), strict=True):
                ours.load_state_dict(theirs.state_dict())
        except (RuntimeError, ValueError):
            raise ValueError(
                f"{source}: expected a student of the teacher's size to start from its weights; set --model.start random"
            ) from None

    def _student_to_start_from(self, source: str) -> ShapeModule:
        if not Path(source).exists():
            raise ValueError(
                f"unknown start {source!r}; expected random, teacher, or a student's run folder or checkpoint"
            )
        other = Student.load(source)
        wanted = ("detector", "noise", "alpha", "standardize", "physics", "transforms", "bins", "bound", "permutation")
        for name in (*wanted, "flow_seed"):
            if other.init[name] != self.init[name]:
                raise ValueError(
                    f"{source}: expected a student to start from with {name} {self.init[name]}, got {other.init[name]}"
                )
        for part in ("features", "logits"):
            mine = getattr(self, part).state_dict()
            if any(not torch.equal(value, mine[key]) for key, value in getattr(other, part).state_dict().items()):
                raise ValueError(
                    f"{source}: expected a student to start from that was distilled from a teacher of the same standardization "
                    f"of {part}, got another"
                )
        theirs, ours = other.init["hidden"], self.init["hidden"]
        if len(theirs) != len(ours) or any(a < b for a, b in zip(theirs, ours, strict=True)):
            raise ValueError(
                f"{source}: expected a student to start from with hidden layers not narrower than {ours}, got {theirs}"
            )
        return other

    def _start(self, forerunner: ShapeModule) -> None:
        """Takes over another student's weights, pruned on noise and contexts of training rows if it is wider."""
        if (
            forerunner.init["hidden"] == self.init["hidden"]
            and forerunner.init["context_share"] == self.init["context_share"]
        ):
            self.flow.load_state_dict(forerunner.flow.state_dict())
            return
        rows, particles, images = fit_sample(self.trainer.datamodule)  # type: ignore[attr-defined]
        most = max(PRUNING_ROWS, 4 * max(self.init["hidden"]))
        some = torch.linspace(0, len(rows) - 1, min(len(rows), most)).long()
        noise = draws.normal(draws.row_keys(rows[some], draws.FIT_STREAM, 1), self.detector.pixels)
        prune(forerunner.flow, self.flow, noise, self.context(particles[some], images[some].flatten(1).sum(1)))

    @property
    def teacher(self) -> ShapeModule:
        """The teacher, frozen, where the student is.

        Raises:
            ValueError: If there is none.
        """
        if not self._teacher:
            raise ValueError("expected a teacher to learn from: --model.init_from RUN_FOLDER, got none")
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

    def weights(self, step: int | None = None) -> dict[str, float]:
        """The weights of all losses that are not switched off.

        Args:
            step: The training step, for the ramp of the channel loss; its full weight if not given.
        """
        weights = {f"{space}_{part}": w for space, parts in self.distilled.items() for part, w in parts.items()}
        ramp = (
            1.0 if step is None or step >= self.channel_warmup_steps else (step + 1) / (self.channel_warmup_steps + 1)
        )
        weights |= {"channel": self.channel_weight * ramp, "center": self.center_weight}
        return {name: w for name, w in weights.items() if w}

    @property
    def row_weights(self) -> tuple[str, ...]:
        """Which of the weights that a callback may put into a batch change anything."""
        return ("loss_weight", *(("physics_weight",) if self.channel_weight or self.center_weight else ()))

    def losses(self, batch: dict[str, Tensor], step: int = -1) -> dict[str, Tensor]:
        """The losses of each row, not weighted.

        Args:
            batch: A batch of :class:`~calosim.showers.datamodule.RootDataModule`.
            step: The training step, which keys the noise; -1 is the fixed noise of validation.

        Returns:
            For each name of :meth:`weights` the losses with shape (B,): ``x_outputs`` and so on, ``channel``, ``center``;
            and ``kl``, the contribution to the divergence of the student from the teacher in nats per pixel, if
            anything starts from noise.
        """
        weights = self.weights()
        x, context = self.inputs(batch, step)
        parts: dict[str, Tensor] = {}
        if any(n in weights for n in ("x_outputs", "x_intermediate", "x_parameters", "channel", "center")):
            with torch.no_grad():
                taught = trace(self.teacher.flow, x, context)
            made = trace(self.flow, taught.states[-1], context)
            parts |= self._compared("x", taught, made, 0)
            parts |= self._physics(batch, x, made.states[0])
        if any(n in weights for n in ("z_outputs", "z_intermediate", "z_parameters")):
            keys = step_keys(batch["rows"], draws.TRAINING_STREAM, step)
            z = draws.normal(keys, self.detector.pixels).to(x)
            made = trace(self.flow, z, context)
            taught = trace(self.teacher.flow, made.states[0], context)
            parts |= self._compared("z", taught, made, -1)
            with torch.no_grad():
                normals = (taught.states[-1].square() - z.square()).sum(1) / 2
                parts["kl"] = (made.ladj - taught.ladj + normals) / self.detector.pixels
        return parts

    def objective(
        self, parts: dict[str, Tensor], batch: dict[str, Tensor] | None = None, step: int | None = None
    ) -> Tensor:
        """The weighted sum of the losses of each row, shape (B,).

        Args:
            parts: The losses, from :meth:`losses`.
            batch: The batch whose ``loss_weight`` and ``physics_weight`` count, if it has them; rows weigh 1 if not given.
            step: See :meth:`weights`.
        """
        rows = batch or {}
        total = torch.zeros_like(next(iter(parts.values())))
        for name, weight in self.weights(step).items():
            if name in parts:
                of_rows = rows.get("physics_weight", 1.0) if name in ("channel", "center") else 1.0
                total = total + weight * of_rows * parts[name]
        return total * rows.get("loss_weight", 1.0)

    def _compared(self, space: str, taught: Trace, made: Trace, end: int) -> dict[str, Tensor]:
        """The parts of a distillation loss; `end` is the state where the outputs are."""
        pairs = {
            "outputs": ([taught.states[end]], [made.states[end]]),
            "intermediate": (taught.states[1:-1], made.states[1:-1]),
            "parameters": (taught.parameters, made.parameters),
        }
        # A single transformation has no intermediate states.
        return {
            f"{space}_{part}": distillation(*pair)
            for part, pair in pairs.items()
            if self.distilled[space][part] and pair[0]
        }

    def _physics(self, batch: dict[str, Tensor], x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The losses of images: from the logits of the data and of the student, both with shape (B, nx * ny)."""
        parts: dict[str, Tensor] = {}
        photon_sum = batch["images"].flatten(1).sum(1).to(made.dtype)
        scale = (photon_sum + self.logits.expected_noise)[:, None]

        def images(logits: Tensor) -> Tensor:
            return (self.logits.shapes(logits) * scale).unflatten(1, self.detector.shape)

        if self.channel_weight:
            divisor = photon_sum.clamp(min=1) ** CHANNEL_POWERS[self.channel_scale]
            parts["channel"] = channel_loss(images(made), images(x), self.detector, self.channel_convention, divisor)
        if self.center_weight:
            parts["center"] = shower_center(images(made) - self.logits.noise / 2, batch["particles"], self.detector)
        return parts

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the weighted sum of the losses, the mean over rows."""
        parts, rows = self.losses(batch, self.global_step), len(batch["rows"])
        loss = self.objective(parts, batch, self.global_step).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=rows)
        for name, part in parts.items():
            self.log(f"train/{name}", part.detach().mean(), batch_size=rows)
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the losses, rows not weighted and noise fixed, over all rows of all processes."""
        parts = self.losses(batch)
        parts["loss"] = self.objective(parts)
        for name, part in parts.items():
            metric = cast(MeanMetric, self.val_parts[name])
            metric.update(part)
            self.log(f"val/{name}", metric, prog_bar=name == "loss")


def _filled(known: Any, **given: Any) -> dict[str, Any]:
    """What was given, and what is known where nothing was."""
    return {name: known[name] if value is None else value for name, value in given.items()}
