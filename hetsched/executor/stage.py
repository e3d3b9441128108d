"""One rank's stage: its blocks, and a forward or backward pass of one micro-batch through them."""

import torch
from torch import Tensor
from torch.nn import functional

from hetsched.executor.communication import Inbox, Outbox, present
from hetsched.executor.data import ByteText
from hetsched.executor.groups import Groups, Seat
from hetsched.executor.model import Transformer
from hetsched.executor.schedule import actions, in_flight
from hetsched.plan import Plan


class StageWorker:
    """Runs a seat's schedule. Gradients add up in the parameters; nothing is averaged here.

    The loss is the sum over a micro-batch's tokens divided by the tokens of the *global* batch; sequences beyond the
    global batch weigh nothing. So gradients that are added up over pipelines are those of the mean over the batch,
    whatever each pipeline's share.
    """

    def __init__(self, plan: Plan, seat: Seat, model: Transformer, text: ByteText, groups: Groups) -> None:
        self._plan, self._seat, self._model, self._text = plan, seat, model, text
        self._parameter = next(iter(model.parameters()))
        self._device = self._parameter.device
        job, schedule = plan.workload, plan.options.schedule
        shape = (job.micro_batch, job.seq_len, plan.model.hidden_size)
        self._activations_in = self._gradients_in = None
        self._activations_out = self._gradients_out = None
        stage, depth, micro_batches = seat.stage, seat.depth, seat.micro_batches
        if seat.previous is not None and groups.before is not None:
            self._activations_in = Inbox(
                seat.previous, groups.before.forward, shape, self._parameter.dtype, self._device
            )
            bound = in_flight(schedule, stage - 1, depth, micro_batches)
            self._gradients_out = Outbox(seat.previous, groups.before.backward, bound)
        if seat.next is not None and groups.after is not None:
            self._gradients_in = Inbox(seat.next, groups.after.backward, shape, self._parameter.dtype, self._device)
            bound = in_flight(schedule, stage, depth, micro_batches)
            self._activations_out = Outbox(seat.next, groups.after.forward, bound)
        self._inputs: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    @property
    def waited_s(self) -> float:
        """Host time spent waiting for messages so far."""
        return sum(box.waited_s for box in (self._activations_in, self._gradients_in) if box is not None)

    def run_step(self, step: int) -> Tensor:
        """All passes of one training step, in the schedule's order. Returns this rank's share of the loss, fp64."""
        seat = self._seat
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        for inbox in (self._activations_in, self._gradients_in):
            if inbox is not None:
                inbox.expect(seat.micro_batches)
        for action in actions(self._plan.options.schedule, seat.stage, seat.depth, seat.micro_batches):
            if action.kind == "forward":
                self._forward(step, action.micro_batch)
                if self._model.head is not None:
                    loss += self._outputs[action.micro_batch].detach()
            else:
                self._backward(action.micro_batch)
        return loss

    def finish_sends(self) -> None:
        """Wait until the step's last messages have left."""
        for outbox in (self._activations_out, self._gradients_out):
            if outbox is not None:
                outbox.drain()

    def _forward(self, step: int, micro_batch: int) -> None:
        numbers = self._numbers(micro_batch)
        if self._activations_in is None:
            x = self._samples(step, numbers)[0]
        else:
            x = self._activations_in.take().requires_grad_()
            self._inputs[micro_batch] = x
        output: Tensor = self._model(x)
        if self._activations_out is None:
            output = self._loss(output, self._samples(step, numbers)[1], numbers)
        else:
            self._activations_out.send(output)
        self._outputs[micro_batch] = output

    def _backward(self, micro_batch: int) -> None:
        output = self._outputs.pop(micro_batch)
        torch.autograd.backward(output, None if self._gradients_in is None else self._gradients_in.take())
        if self._gradients_out is not None:
            self._gradients_out.send(present(self._inputs.pop(micro_batch).grad))

    def _loss(self, logits: Tensor, targets: Tensor, numbers: range) -> Tensor:
        job = self._plan.workload
        per_token = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        counted = torch.tensor([number < job.global_batch for number in numbers], device=self._device)
        return (per_token.view(targets.shape) * counted[:, None]).sum() / job.tokens

    def _numbers(self, micro_batch: int) -> range:
        size = self._plan.workload.micro_batch
        start = self._seat.first_sample + micro_batch * size
        return range(start, start + size)

    def _samples(self, step: int, numbers: range) -> tuple[Tensor, Tensor]:
        job = self._plan.workload
        inputs, targets = self._text.samples(step * job.global_batch, numbers, job.seq_len)
        return inputs.to(self._device), targets.to(self._device)
