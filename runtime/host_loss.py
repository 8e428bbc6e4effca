"""The host's part of a training step: the loss, its gradient with respect to the output, and its own optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compiler.ir import Reading
from compiler.losses import RATE_SCALE, Loss
from hwmodel.errors import CompileError, Loc
from hwmodel.program import Program
from runtime.engines import F16
from runtime.host import F32, read_out
from runtime.memory import Values

Labels = npt.NDArray[np.int64]


@dataclass(slots=True)
class BatchTally:
    """What the losses of a batch add up to."""

    loss: float = 0.0  # sum over samples
    correct: int = 0
    samples: int = 0


@dataclass(slots=True)
class LossHost:
    """Computes the loss of one sub-batch after another, in f32, and hands its gradient over in FP16.

    The gradient is that of the mean over the batch, times loss scale, times the samples that the update divides by.
    """

    program: Program
    factor: float = 1.0  # places of the batch over its samples: absent samples do not count
    labels: list[Labels] = field(default_factory=list)  # of the sub-batches still to come, in order
    tally: BatchTally = field(default_factory=BatchTally)
    optimiser: HostSgd | None = None

    def loss_gradient(self, output: Values) -> F16:
        """Gradient of the loss of the next sub-batch.

        Shapes: (t, n, y, x, c), the same.
        Raises: CompileError where the gradient leaves FP16, with step, or a score is not finite.
        """
        training = self.program.training
        assert training is not None
        labels = self.labels.pop(0)
        scores = read_out(self.program, output, len(labels))
        losses, gradients = loss_and_gradient(Loss(training.loss), scores, labels)
        self.tally.loss += float(losses.sum(dtype=np.float64))
        self.tally.correct += int((scores.argmax(1) == labels).sum())
        self.tally.samples += len(labels)
        scaled = over_time(Reading(self.program.host.readout), output[:, : len(labels)], gradients)
        scaled = scaled * np.float32(training.loss_scale * self.factor)
        result = np.zeros(output.shape, np.float16)
        with np.errstate(over="ignore"):
            result[:, : len(labels)] = scaled
        if not np.isfinite(result).all():
            step = int(np.argwhere(~np.isfinite(result))[0][0])
            raise CompileError(
                f"the gradient of the loss overflows FP16 at step {step}",
                Loc(self.program.name),
                hint="lower the loss scale",
            )
        return result

    def updated(self, weight: str, weights: F16, gradient: F16) -> F16:
        """New weights by the host's optimiser. Shapes: (y, x, c)."""
        assert self.optimiser is not None
        return self.optimiser.step(weight, gradient)


@dataclass(slots=True)
class HostSgd:
    """Stochastic gradient descent on master weights in f32, as torch.optim.SGD; keys tell weights from biases."""

    learning_rate: float
    momentum: float
    weight_decay: float
    scale: float = 1.0  # loss scale times places of the batch
    masters: dict[str, F32] = field(default_factory=dict)
    buffers: dict[str, F32] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)  # steps that the FP16 copy does not show
    moved: dict[str, int] = field(default_factory=dict)

    def step(self, key: str, gradient: F16) -> F16:
        """One step; the weights rounded to FP16."""
        old = self.masters[key]
        slope = gradient.astype(np.float32) / np.float32(self.scale)
        if self.weight_decay:
            slope = slope + np.float32(self.weight_decay) * old
        if self.momentum:
            slope = np.float32(self.momentum) * self.buffers[key] + slope if key in self.buffers else slope
            self.buffers[key] = slope
        new = old - np.float32(self.learning_rate) * slope
        self.masters[key] = new
        with np.errstate(over="ignore"):  # the machine refuses what is not finite
            before, after = old.astype(np.float16), new.astype(np.float16)
        self.moved[key] = int((before != after).sum())
        self.lost[key] = int(((slope != 0) & (before == after)).sum())
        return after


def loss_and_gradient(loss: Loss, scores: F32, labels: Labels) -> tuple[F32, F32]:
    """Loss of each sample, and its gradient with respect to the scores.

    Shapes: scores (N, C) -> (N,), (N, C).
    """
    wanted = np.zeros_like(scores)
    wanted[np.arange(len(labels)), labels] = 1.0
    match loss:
        case Loss.MSE:
            difference = scores - wanted
            return (difference**2).mean(1), 2.0 * difference / np.float32(scores.shape[1])
        case Loss.CROSS_ENTROPY:
            logits = np.float32(RATE_SCALE) * scores
            shifted = logits - logits.max(1, keepdims=True)
            total = np.exp(shifted).sum(1, keepdims=True)
            losses = np.log(total[:, 0]) - shifted[np.arange(len(labels)), labels]
            return losses, np.float32(RATE_SCALE) * (np.exp(shifted) / total - wanted)


def over_time(readout: Reading, output: Values, gradients: F32) -> F32:
    """The gradient of the scores at each time step; a maximum shares it among the steps that reach it.

    Shapes: output (t, n, y, x, c), gradients (n, classes) in (c, y, x) order -> (t, n, y, x, c).
    """
    steps, samples, height, width, channels = output.shape
    maps = gradients.reshape(samples, channels, height, width).transpose(0, 2, 3, 1)
    match readout:
        case Reading.RATE:
            return np.array(np.broadcast_to(maps / np.float32(steps), output.shape), np.float32)
        case Reading.LAST:
            result = np.zeros(output.shape, np.float32)
            result[-1] = maps
            return result
        case Reading.MAX:
            values = output.astype(np.float32)
            reached = values == values.max(0)
            return np.array(reached / reached.sum(0) * maps, np.float32)
