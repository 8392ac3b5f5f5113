"""The frozen part of the teacher: VGG16's convolutions with ImageNet weights, then the mean over all places.

Shapes: B batch, N pictures, C channels, F = 512 features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdlib.data import vgg16
from kdlib.data.cache import computed_once
from kdlib.files import array_digest, canonical_json, sha256

BLOCK_ENDS = (2, 7, 14, 21, 28)  # places of the convolutions that a max-pooling of 2 x 2 follows
MEANS = (103.939, 116.779, 123.68)  # blue, green, red of ImageNet's training pictures: what the weights expect
STAND_IN_SIDE = 12
RULE = 1  # raise with every edit that changes a feature: it is part of the key of stored features
BATCH = 50


def vgg16_features(tensors: Mapping[str, Tensor], pictures: Tensor) -> Tensor:
    """Return features float (B, F) of RGB pictures uint8 (B, 3, H, W)."""
    means = torch.tensor(MEANS, device=pictures.device).view(1, 3, 1, 1)
    h = (pictures.flip(1).float() - means).contiguous(memory_format=torch.channels_last)
    for place in vgg16.PLACES:
        h = F.relu(F.conv2d(h, tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"], padding=1))
        if place in BLOCK_ENDS:
            h = F.max_pool2d(h, 2)
    return h.mean((2, 3))


def stand_in_features(pictures: Tensor) -> Tensor:
    """Return features float (B, 432) of pictures (B, 3, 96, 96) without weights: the pictures of 12 x 12, 0 to 1."""
    return F.adaptive_avg_pool2d(pictures.float() / 255, STAND_IN_SIDE).flatten(1)


def stored_features(folder: Path, pictures: Tensor) -> Tensor:
    """Return the features float32 (N, F) of pictures uint8 (N, 3, H, W); computed once and kept in `folder`.

    `folder` holds VGG16's weights, as `kdlib.data.vgg16` reads them; a picture of 96 x 96 takes 0.07 core-seconds.
    """
    weights = vgg16.features(folder)
    about = {"rule": RULE, "weights": weights.digest, "pictures": array_digest(pictures.cpu().numpy())}

    def compute() -> tuple[dict[str, Tensor], None]:
        with torch.no_grad():
            parts = [vgg16_features(weights.tensors, part) for part in torch.split(pictures.cpu(), BATCH)]
        return {"features": torch.cat(parts)}, None

    tensors, _ = computed_once(folder, sha256(canonical_json(about).encode())[:32], compute)
    return tensors["features"]


class WholeTeacher(nn.Sequential):
    """The frozen features and the trained head as one network, from pictures uint8 (B, 3, H, W) to one logit (B, 1).

    Its state dict is the head's. `tensors` are VGG16's weights; None: the stand-in without weights.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None, head: nn.Sequential) -> None:
        super().__init__(*head)
        self.names = tuple(tensors or ())
        for name, tensor in (tensors or {}).items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tensors = {name: getattr(self, name.replace(".", "_")) for name in self.names}
        h = vgg16_features(tensors, x) if tensors else stand_in_features(x)
        for layer in self:
            h = layer(h)
        return h


def vgg16_cost(side: int) -> tuple[int, int]:
    """Return the number of parameters of the 13 convolutions, and the operations for one picture of side x side."""
    tensors: dict[str, Tensor] = {}
    for place, out, into in zip(vgg16.PLACES, vgg16.CHANNELS[1:], vgg16.CHANNELS[:-1], strict=True):
        tensors[f"features.{place}.weight"] = torch.empty(out, into, 3, 3, device="meta")
        tensors[f"features.{place}.bias"] = torch.empty(out, device="meta")
    picture = torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta")
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return parameters, operations(lambda: vgg16_features(tensors, picture))


def operations(forward: Callable[[], Tensor]) -> int:
    """Return the floating-point operations of a forward pass: two for each product and its sum."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())
