"""One rank's stage: its blocks, and a forward or backward pass of one micro-batch through them."""

import torch
from torch import Tensor

from hetsched.executor.communication import Inbox, MakeCodec, Outbox, asks_first, present
from hetsched.executor.compression import Codecs
from hetsched.executor.data import ByteText, Epochs
from hetsched.executor.groups import Channel, Groups, Seat
from hetsched.executor.model import Transformer
from hetsched.executor.schedule import actions, in_flight
from hetsched.executor.settings import RunSettings
from hetsched.executor.shards import Ranks
from hetsched.executor.tensor_parallel import cross_entropy
from hetsched.plan import Plan


class StageWorker:
    """Runs a seat's schedule. Gradients add up in the parameters; nothing is averaged here.

    The loss is the sum over a micro-batch's tokens divided by the tokens of the *global* batch; sequences beyond the
    global batch weigh nothing. So gradients that are added up over pipelines are those of the mean over the batch,
    whatever each pipeline's share.
    """

    def __init__(
        self, plan: Plan, seat: Seat, model: Transformer, text: ByteText, groups: Groups, settings: RunSettings
    ) -> None:
        self._plan, self._seat, self._model, self._text = plan, seat, model, text
        parameter = next(iter(model.parameters()))
        self._device, self._epochs = parameter.device, Epochs(settings.epoch_steps, settings.seed)
        keys = (settings.epoch_steps or 0) * seat.micro_batches
        codecs = Codecs(plan.options.compression, settings, parameter, keys, seat.rank)
        job, overlap = plan.workload, plan.options.overlap
        self._shape = (job.micro_batch, job.seq_len, plan.model.hidden_size)
        flat = (job.micro_batch * job.seq_len, plan.model.hidden_size)

        def bound(earlier_stage: int) -> int:
            return in_flight(plan.options.schedule, earlier_stage, seat.depth, seat.micro_batches)

        def inbox(channel: Channel | None, make: MakeCodec, earlier_stage: int) -> Inbox | None:
            return None if channel is None else Inbox(channel, model.team, flat, make, bound(earlier_stage), overlap)

        def outbox(
            channels: tuple[Channel, ...], receivers: Ranks, make: MakeCodec, earlier_stage: int
        ) -> Outbox | None:
            return Outbox(channels, len(receivers), flat, make, bound(earlier_stage), overlap) if receivers else None

        self._activations_in = inbox(groups.activations_in, codecs.of_activations, seat.stage - 1)
        self._gradients_in = inbox(groups.gradients_in, codecs.of_gradients, seat.stage)
        self._activations_out = outbox(groups.activations_out, seat.next, codecs.of_activations, seat.stage)
        self._gradients_out = outbox(groups.gradients_out, seat.previous, codecs.of_gradients, seat.stage - 1)
        self._expected = -1  # the step whose first receives are posted
        self._inputs: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    @property
    def waited_s(self) -> float:
        """Host time spent waiting for messages so far."""
        return sum(box.waited_s for box in (self._activations_in, self._gradients_in) if box is not None)

    @property
    def sent_bytes(self) -> tuple[int, int]:
        """Bytes of activations and of their gradients that have left this rank so far."""
        forward, backward = self._activations_out, self._gradients_out
        return 0 if forward is None else forward.sent_bytes, 0 if backward is None else backward.sent_bytes

    def expect_early(self, step: int) -> None:
        """Post the first receives of the step to come where their senders wait for word of that.

        Elsewhere a posted receive would hold the GPU, and nobody could wait for the device until the message comes.
        """
        if asks_first(None):
            self._expect(step)

    def _expect(self, step: int) -> None:
        if step != self._expected:
            self._expected, batch = step, self._epochs.batch(step)
            for inbox in (self._activations_in, self._gradients_in):
                if inbox is not None:
                    inbox.expect([self._key(batch, number) for number in range(self._seat.micro_batches)])

    def run_step(self, step: int) -> Tensor:
        """All passes of one training step, in the schedule's order. Returns this rank's share of the loss, fp64."""
        seat, batch = self._seat, self._epochs.batch(step)
        self._expect(step)
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        for action in actions(self._plan.options.schedule, seat.stage, seat.depth, seat.micro_batches):
            if action.kind == "forward":
                self._forward(batch, action.micro_batch)
                if self._model.head is not None and self._model.team.place == 0:  # its team has the same loss
                    loss += self._outputs[action.micro_batch].detach()
            else:
                self._backward(batch, action.micro_batch)
        return loss

    def finish_sends(self) -> None:
        """Wait until the step's last messages have left."""
        for outbox in (self._activations_out, self._gradients_out):
            if outbox is not None:
                outbox.drain()

    def _forward(self, batch: int, micro_batch: int) -> None:
        numbers = self._numbers(micro_batch)
        if self._activations_in is None:
            x = self._samples(batch, numbers)[0]
        else:
            x = self._activations_in.take().view(self._shape).requires_grad_()
            self._inputs[micro_batch] = x
        output: Tensor = self._model(x)
        if self._activations_out is None:
            output = self._loss(output, self._samples(batch, numbers)[1], numbers)
        else:
            self._activations_out.send(output.flatten(0, 1), self._key(batch, micro_batch))
        self._outputs[micro_batch] = output

    def _backward(self, batch: int, micro_batch: int) -> None:
        output = self._outputs.pop(micro_batch)
        gradient = None if self._gradients_in is None else self._gradients_in.take().view(self._shape)
        torch.autograd.backward(output, gradient)
        if self._gradients_out is not None:
            gradient = present(self._inputs.pop(micro_batch).grad)
            self._gradients_out.send(gradient.flatten(0, 1), self._key(batch, micro_batch))

    def _loss(self, logits: Tensor, targets: Tensor, numbers: range) -> Tensor:
        job, head = self._plan.workload, present(self._model.head)
        per_token = cross_entropy(logits.flatten(0, 1), targets.flatten(), head.columns, self._model.team)
        counted = torch.tensor([number < job.global_batch for number in numbers], device=self._device)
        return (per_token.view(targets.shape) * counted[:, None]).sum() / job.tokens

    def _key(self, batch: int, micro_batch: int) -> int:
        return batch * self._seat.micro_batches + micro_batch

    def _numbers(self, micro_batch: int) -> range:
        size = self._plan.workload.micro_batch
        start = self._seat.first_sample + micro_batch * size
        return range(start, start + size)

    def _samples(self, batch: int, numbers: range) -> tuple[Tensor, Tensor]:
        job = self._plan.workload
        inputs, targets = self._text.samples(batch * job.global_batch, numbers, job.seq_len)
        return inputs.to(self._device), targets.to(self._device)
