"""Many students of one architecture trained side by side on one device, as one stacked network.

    members = [Student() for _ in seeds]
    model = Replicas(members)
    progress = Progress(model, torch.optim.Adam(model.parameters()))
    for epoch in epochs(progress, beside([batches of each member]), objective, count=50, seed=seeds): ...
    model.member(3)  # a student as it would be had it been trained alone

A step of all of them makes as many calls of a layer as a step of one: `torch.vmap` turns R convolutions into one of R groups.
Initialisation, order of the data and dropout are each member's own, from its own seed, so a member ends where it would have
ended alone, up to rounding.  The optimizer must treat each number by itself, as SGD and Adam do.

Outputs are (R, B, K), so `objective` must give R losses: `torch.vmap(hard_and_soft)`, say; the losses themselves take (B, K).

Shapes: R replicas, B batch, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdlib.batches import Batch
from kdlib.errors import KDError

__all__ = ["Replicas", "beside", "of_replica"]


class Replicas(nn.Module):
    """R members stacked: parameters and buffers (R, ...), inputs (R, B, ...), outputs (R, B, K).

    A member whose layers draw numbers must take them: it has `draws`, how many uniform numbers an example needs, and a
    second argument of `forward` for them, (B, draws).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        shapes = [{name: value.shape for name, value in member.state_dict().items()} for member in members]
        if not members or any(shape != shapes[0] for shape in shapes):
            found = f"{len(members)} of different shapes" if members else "none"
            raise KDError(f"expected networks of one architecture, found {found}; train others in a group of their own")
        # Not registered: it has the architecture only, its own weights are never used.
        self._template = [copy.deepcopy(members[0])]
        self._draws = int(getattr(members[0], "draws", 0))
        self._generators: list[torch.Generator] = []
        self._names: dict[str, str] = {}
        for kind, register in (("named_parameters", self._stack), ("named_buffers", self._stack_buffer)):
            for parts in zip(*(getattr(member, kind)() for member in members), strict=True):
                register(parts[0][0], [value.detach() for _, value in parts])

    def _stack(self, name: str, values: Sequence[Tensor]) -> None:
        self._names[name] = name.replace(".", "/")
        self.register_parameter(self._names[name], nn.Parameter(torch.stack(list(values))))

    def _stack_buffer(self, name: str, values: Sequence[Tensor]) -> None:
        self._names[name] = name.replace(".", "/")
        self.register_buffer(self._names[name], torch.stack(list(values)))

    def __len__(self) -> int:
        """The number of members."""
        return len(next(iter(self.parameters())))

    def seed_layers(self, seeds: Sequence[int]) -> None:
        """Seed the members' dropout, one seed each."""
        if len(seeds) != len(self):
            raise KDError(f"expected {len(self)} seeds, one a replica, found {len(seeds)}")
        device = next(iter(self.parameters())).device
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, B, K) of inputs (R, B, ...)."""
        template = self._template[0]
        template.train(self.training)
        state = {name: getattr(self, stacked) for name, stacked in self._names.items()}
        arguments: tuple[Tensor, ...] = (inputs,)
        if self.training and self._draws:
            if not self._generators:
                raise KDError(f"expected {len(self)} seeds for the replicas' dropout, found none; call seed_layers first")
            shape = (inputs.shape[1], self._draws)
            arguments += (torch.stack([torch.rand(shape, generator=g, device=g.device) for g in self._generators]),)
        outputs: Tensor = torch.vmap(lambda state, arguments: functional_call(template, state, arguments))(state, arguments)
        return outputs

    def member(self, number: int) -> nn.Module:
        """A copy of one member as a network of its own."""
        found = copy.deepcopy(self._template[0])
        found.load_state_dict(of_replica({name: getattr(self, stacked) for name, stacked in self._names.items()}, number))
        return found.to(next(iter(self.parameters())).device).train(self.training)


def of_replica(stacked: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """One member's part of stacked tensors, its own copy, under the member's names."""
    return {name.replace("/", "."): value[number].clone() for name, value in stacked.items()}


def beside(members: Sequence[Callable[[int], Iterable[Batch]]]) -> Callable[[int], Iterator[Batch]]:
    """The members' batches as stacked ones (R, B, ...); all must have the same sizes."""

    def batches(epoch: int) -> Iterator[Batch]:
        for parts in zip_longest(*(member(epoch) for member in members)):
            if None in parts or len({(part.inputs.shape, part.soft is None) for part in parts}) > 1:
                raise KDError("expected batches of one size, all with soft targets or none, found others among the replicas; "
                              "train those that differ in this in a group of their own")
            inputs, labels, indices = ([getattr(part, name) for part in parts] for name in ("inputs", "labels", "indices"))
            soft = [part.soft for part in parts if part.soft is not None]
            yield Batch(torch.stack(inputs), torch.stack(labels), torch.stack(indices), torch.stack(soft) if soft else None)

    return batches
