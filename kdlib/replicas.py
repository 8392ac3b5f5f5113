"""Many students of one architecture, trained side by side on one device as one stacked network.

    members = [Student() for _ in seeds]
    model = Replicas(members)
    progress = Progress(model, torch.optim.Adam(model.parameters()))
    for epoch in epochs(progress, side_by_side([batches of each member]), objective, count=50, seed=seeds): ...
    model.member(3)  # the fourth student, equal to one trained alone up to rounding

One step for all students launches as many kernels as one student's step: `torch.vmap` turns R convolutions into one
convolution of R groups. Each member has its own initialisation, order of the data and dropout, from its own seed, so it
ends where it would end alone, up to rounding. The optimizer must be element-wise (SGD, Adam).

Outputs are (R, B, K), so `objective` must return R losses. The losses of `kdlib.losses` take (B, K); map them over the
students, for example with `torch.vmap(hard_and_soft)`.

Shapes: R replicas, B batch, K classes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import repeat, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from kdlib.architecture import refuse_differences, refuse_what_cannot_be_stacked, refuse_what_is_shared
from kdlib.batches import STEPS_PER_GATHER, Batch, Batches
from kdlib.checks import check_number, whole_number
from kdlib.errors import KDError
from kdlib.modes import evaluated_within, warn_of_modes
from kdlib.products import ConvolutionsAsProducts
from kdlib.seeds import OTHERS

__all__ = [
    "CONVOLUTIONS",
    "Replicas",
    "layer_generators",
    "of_replica",
    "refusing_what_vmap_refuses",
    "side_by_side",
]

CONVOLUTIONS = ("grouped", "products")


class Replicas(nn.Module):
    """R members stacked: parameters and buffers (R, ...), inputs (R, B, ...), outputs (R, B, K).

    A member whose layers draw random numbers must accept them from outside: its attribute `draws` is the number of
    uniform numbers that one example needs, and its `forward` takes them as a second argument, (B, draws).

    `convolutions`: "grouped" makes one convolution of R groups of the members' convolutions, "products" makes R matrix
    products. They differ in rounding and in speed, by device and number of channels.

    What treats all weights as one mixes the members: a limit of the gradient's norm, for example, must be computed for
    each member, along all axes but the first. Weights have one more axis than those of a member: a bias has two.

    Parameters and modules that are frozen in the members (`requires_grad`, evaluation mode) are frozen in the replicas.

    Raises KDError unless there is at least one member and all are the same in everything but the values of parameters
    and buffers (`kdlib.architecture`), and for members that cannot be stacked.
    """

    def __init__(self, members: Sequence[nn.Module], convolutions: str = "grouped") -> None:
        super().__init__()
        refuse_differences(members)
        refuse_what_cannot_be_stacked(members[0], bool(getattr(members[0], "draws", 0)))
        if convolutions not in CONVOLUTIONS:
            raise KDError(f"convolutions: expected {' or '.join(CONVOLUTIONS)}, found {convolutions!r}")
        self._as_products = convolutions == "products"
        # In a list, so that torch does not register it: only its architecture is used, never its weights.
        self._template, self._plain = [_copied(members[0])], [_copied(members[0])]
        refuse_what_is_shared(members[0], self.template)
        self._draws = int(getattr(members[0], "draws", 0))
        evaluated = evaluated_within(members[0]) or []
        warn_of_modes(members[0], evaluated, {id(weight) for weight in members[0].parameters()}, set(), "Replicas")
        self._frozen = [name for name, module in members[0].named_modules() if any(module is one for one in evaluated)]
        self.generators: list[torch.Generator] = []  # of the members' dropout
        self._names: dict[str, str] = {}
        every = [dict(member.named_parameters()) | dict(member.named_buffers()) for member in members]
        kept = members[0].state_dict().keys()
        for name, first in every[0].items():
            self._names[name] = name.replace(".", "/")  # torch allows no dot here
            stacked = torch.stack([parts[name].detach() for parts in every])
            if isinstance(first, nn.Parameter):
                self.register_parameter(self._names[name], nn.Parameter(stacked, first.requires_grad))
            else:
                self.register_buffer(self._names[name], stacked, persistent=name in kept)
        self._everywhere = self._with_tied(members[0])

    @property
    def template(self) -> nn.Module:
        """The architecture of the members; its weights are those of no member."""
        return self._template[0]

    def _with_tied(self, member: nn.Module) -> dict[str, str]:
        """The names of all parameters and buffers, of tied ones too, with those of their stacks."""
        own = {**dict(member.named_parameters()), **dict(member.named_buffers())}
        stack_of = {id(tensor): self._names[name] for name, tensor in own.items()}
        places = {}
        for path, module in member.named_modules():  # a layer that is used twice comes once
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    places[f"{path}.{name}" if path else name] = stack_of[id(tensor)]
        return places

    def __len__(self) -> int:
        """Return the number of members."""
        return len(next(iter(self.parameters())))

    def seed_layers(self, seeds: Sequence[int]) -> None:
        """Seed the members' dropout with one seed for each member; KDError for another number of seeds."""
        if len(seeds) != len(self):
            raise KDError(f"expected {len(self)} seeds, one for each replica, found {len(seeds)}")
        device = next(iter(self.parameters())).device
        if [generator.device for generator in self.generators] != [device] * len(self):
            self.generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self.generators, seeds, strict=True):  # the same ones: a CUDA graph knows them
            generator.manual_seed(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (R, B, K) of inputs (R, B, ...); KDError for others, and without the seeds of dropout."""
        shapes = [tuple(part.shape) for part in tree_leaves(inputs) if isinstance(part, Tensor)]
        if any(shape[:1] != (len(self),) for shape in shapes):
            raise KDError(
                f"expected inputs (R, B, ...) of R = {len(self)} members, found {', '.join(map(str, shapes))}; make "
                "batches with side_by_side, and let member(i) predict"
            )
        self._in_mode(self.template)
        state = {name: getattr(self, stacked) for name, stacked in self._everywhere.items()}
        arguments: tuple[Tensor, ...] = (inputs,)
        if self.training and self._draws:
            if not self.generators:
                raise KDError(
                    f"expected {len(self)} seeds for the replicas' dropout, found none; call seed_layers first"
                )
            shape = (inputs.shape[1], self._draws)
            arguments += (torch.stack([torch.rand(shape, generator=g, device=g.device) for g in self.generators]),)
        with ConvolutionsAsProducts() if self._as_products else nullcontext(), refusing_what_vmap_refuses():
            outputs: Tensor = torch.vmap(self._outputs_of_one)(state, arguments)
        return outputs

    def _outputs_of_one(self, state: dict[str, Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
        template = self.template

        def refuse_others(*_: object) -> None:
            # A new tensor in a buffer's place would be lost, as functional_call puts the template's own back.
            for name, buffer in template.named_buffers():
                if buffer is not state.get(name):  # or one that was made in forward
                    raise KDError(
                        f"expected members that change their buffers in place, found that {name} is replaced; use "
                        f"self.{name}.copy_(...), or train the members one by one"
                    )

        with template.register_forward_hook(refuse_others):
            # Without its own search for tied weights, which leaves the state in a layer that is used twice.
            outputs: Tensor = functional_call(template, state, arguments, tie_weights=False)
        return outputs

    def member(self, number: int) -> nn.Module:
        """Return a copy of one member as a separate network; KDError for a number that no member has."""
        number = whole_number("number of a member", number, least=0)
        check_number("number of a member", number, 0, len(self) - 1, "they are counted from 0")
        try:
            found = _copied(self.template)
        except KDError:  # a forward has kept a tensor of all members in an attribute
            found = _copied(self._plain[0])
        own = of_replica({name: getattr(self, stacked).detach() for name, stacked in self._names.items()}, number)
        with torch.no_grad():
            for name, value in (*found.named_parameters(), *found.named_buffers()):
                value.copy_(own[name])
        return self._in_mode(found.to(next(iter(self.parameters())).device))

    def _in_mode(self, network: nn.Module) -> nn.Module:
        network.train(self.training)
        for name in self._frozen:
            network.get_submodule(name).training = False
        return network


def of_replica(stacked: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return a copy of one member's part of stacked tensors, under the names that the member itself uses."""
    return {name.replace("/", "."): value[number].clone() for name, value in stacked.items()}


def side_by_side(members: Sequence[Callable[[int], Iterable[Batch]]]) -> Callable[[int], Iterator[Batch]]:
    """Return a function from the epoch to the members' batches, stacked to (R, B, ...).

    KDError if the members' batches differ in size, or if only some have soft targets.
    """
    if not isinstance(members, list | tuple) or not all(callable(member) for member in members):
        raise KDError(
            f"members: expected a list of Batches, one for each member, found {type(members).__name__}; write "
            "side_by_side([Batches(...) for seed in seeds])"
        )
    plain = _plain_batches_of_one_data_set(members)

    def batches(epoch: int) -> Iterator[Batch]:
        yield from _stacked(members, epoch) if plain is None else _gathered(plain, epoch)

    batches.members = members  # type: ignore[attr-defined]  # the trace asks each of them what it is made of
    return batches


def _shape_of(soft: Tensor | None) -> torch.Size | None:
    return None if soft is None else soft.shape


def _stacked(members: Sequence[Callable[[int], Iterable[Batch]]], epoch: int) -> Iterator[Batch]:
    for parts in zip_longest(*(member(epoch) for member in members)):
        if None in parts or len({(part.inputs.shape, _shape_of(part.soft)) for part in parts}) > 1:
            raise KDError(
                "expected batches of one size, all with soft targets of as many classes or all without, found others; "
                "train the replicas that differ in this in separate groups"
            )
        inputs, labels, indices = ([getattr(part, name) for part in parts] for name in ("inputs", "labels", "indices"))
        soft = [part.soft for part in parts if part.soft is not None]
        yield Batch(torch.stack(inputs), torch.stack(labels), torch.stack(indices), torch.stack(soft) if soft else None)


def _plain_batches_of_one_data_set(members: Sequence[Any]) -> list[Batches] | None:
    """The members if all have the same examples, size and kind of targets, as they are; otherwise None."""
    if not all(type(member) is Batches and member.mix is None and member.augment is None for member in members):
        return None
    kinds = {
        (*_place(member.examples.inputs), *_place(member.examples.labels), member.size, member.drop_last)
        for member in members
    }
    targets = {_shape_of(member.soft) for member in members}
    return [*members] if len(kinds) == len(targets) == 1 else None


def _place(values: Tensor) -> tuple[Any, ...]:
    return values.data_ptr(), values.shape, values.stride(), values.dtype


def _gathered(members: Sequence[Batches], epoch: int) -> Iterator[Batch]:
    """The same batches as stacked ones, gathered for many steps and all members by one index."""
    examples, size = members[0].examples, members[0].size
    orders = torch.stack([member.order(epoch) for member in members])
    soft = (
        None if members[0].soft is None else torch.stack([member.soft for member in members if member.soft is not None])
    )
    for many in torch.split(orders, size * STEPS_PER_GATHER, dim=1):
        full = many.shape[1] // size * size
        for part in (many[:, :full], many[:, full:]):
            if part.shape[1] == 0:
                continue
            rows = part.reshape(len(members), -1, min(size, part.shape[1])).transpose(0, 1)  # (steps, R, B)
            inputs, labels = (
                values.index_select(0, rows.flatten()).view(*rows.shape, *values.shape[1:])
                for values in (examples.inputs, examples.labels)
            )
            member = torch.arange(len(members), device=rows.device).view(1, -1, 1)
            targets = repeat(None) if soft is None else soft[member, rows]
            yield from map(Batch, inputs, labels, rows, targets)


@contextmanager
def refusing_what_vmap_refuses() -> Iterator[None]:
    """Raise KDError in place of torch's errors about layers that it cannot map over the members."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("vmap|atching rule|BatchedTensor", str(error)):
            raise
        raise KDError(
            f"expected members that torch.vmap can map over, found: {str(error).splitlines()[0]}; give the members' "
            "random layers `draws`, replace the layer, or train the members one by one"
        ) from error


def layer_generators(model: nn.Module) -> list[Any]:
    """Return the generators that a step draws from: those of the members' dropout, and the global ones.

    The global ones are torch's, NumPy's and Python's: layers, objective and batches may draw from each.
    """
    members = model.generators if isinstance(model, Replicas) else []
    cuda = sorted({value.device.index for value in model.parameters() if value.is_cuda})
    on_cuda = [torch.cuda.default_generators[index] for index in cuda]
    return [*members, torch.default_generator, *on_cuda, *OTHERS]


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # of any kind, because it is an attribute's own
        raise KDError(
            f"expected a network that copy.deepcopy can copy, found {type(error).__name__}: {error}; "
            "leave out the attribute, or train the members one by one"
        ) from error
