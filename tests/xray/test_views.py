"""The bank of views against scipy, and the batches that take one view of each picture."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from kdlib.batches import Examples
from kdlib.data.synthetic_photographs import xrays
from replications.xray.views import Draw, Views, bank_of, draw, view_of

PICTURES = torch.from_numpy(xrays(4, seed=1).images)
STILL = Draw(0.0, 0.0, (1.0, 1.0), 1.0, (False, False))


def made_by_scipy(picture, how):
    """The view as Keras defines it: three matrices, an offset to the middle, then flips, then brightness."""
    turn, slant = math.radians(how.rotation), math.radians(how.shear)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shear = np.array([[1, -math.sin(slant)], [0, math.cos(slant)]])
    whole = rotation @ shear @ np.diag(how.zoom)
    middle = (np.array(picture.shape) - 1) / 2
    pixels = ndimage.affine_transform(
        picture.astype(float), whole, middle - whole @ middle, order=1, mode="nearest", prefilter=False
    )
    if how.flips[0]:
        pixels = pixels[:, ::-1]
    if how.flips[1]:
        pixels = pixels[::-1]
    return np.minimum(how.brightness * pixels, 255)


@pytest.mark.parametrize(
    "how",
    [
        STILL,
        Draw(5.0, 0.0, (1.0, 1.0), 1.0, (False, False)),
        Draw(0.0, 20.0, (1.0, 1.0), 1.0, (False, False)),  # much more than the source's, so that its sense shows
        Draw(0.0, 0.0, (0.9, 1.1), 1.0, (False, False)),
        Draw(-3.0, 0.0, (1.1, 0.9), 1.3, (True, False)),
        Draw(4.0, 10.0, (1.05, 1.0), 0.7, (True, True)),
        *(draw(number, view) for number in (0, 5807) for view in (0, 3)),
    ],
)
def test_a_view_is_what_scipy_makes_of_kerass_matrices(how):
    picture = PICTURES[0, 0]
    expected = made_by_scipy(picture.numpy(), how)
    found = view_of(picture, how).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() < 0.7  # half a grey level, and positions to a thousandth of a pixel


def test_a_picture_that_is_not_moved_stays_as_it_is():
    assert torch.equal(view_of(PICTURES[1, 0], STILL), PICTURES[1, 0])


def test_draws_fill_the_sources_ranges_evenly():
    every = [draw(number, view) for number in range(500) for view in range(4)]
    ranges = {
        "rotation": ([d.rotation for d in every], -5, 5),
        "shear": ([d.shear for d in every], -0.02, 0.02),
        "zoom of rows": ([d.zoom[0] for d in every], 0.9, 1.1),
        "zoom of columns": ([d.zoom[1] for d in every], 0.9, 1.1),
        "brightness": ([d.brightness for d in every], 0.7, 1.3),
        "left and right": ([float(d.flips[0]) for d in every], 0, 1),
        "top and bottom": ([float(d.flips[1]) for d in every], 0, 1),
    }
    for name, (values, low, high) in ranges.items():
        assert low <= min(values) < max(values) <= high, name
        error = (high - low) / 2 / math.sqrt(len(values))  # at least the standard error of the mean
        assert abs(np.mean(values) - (low + high) / 2) < 4 * error, name
    zooms = np.array([d.zoom for d in every])
    assert abs(np.corrcoef(zooms.T)[0, 1]) < 0.1  # drawn for each axis


def test_a_picture_has_the_same_views_in_every_bank():
    numbers = [7, 3, 12, 5]
    bank = bank_of(PICTURES, numbers, 3)
    assert bank.shape == (12, 1, 224, 224)
    assert torch.equal(bank[6:9], bank_of(PICTURES[2:3], [12], 3))
    assert torch.equal(bank_of(PICTURES[2:3], [12], 2), bank[6:8])
    assert len({bytes(view.numpy()) for view in bank}) == 12
    assert torch.equal(bank[4, 0], view_of(PICTURES[1, 0], draw(3, 1)))


# ---- batches


def views(seed=0, pictures=10, size=4, steps=5):
    labels = torch.arange(pictures) % 3
    examples = Examples(torch.arange(3 * pictures)[:, None], labels.repeat_interleave(3), "d", "bank")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    return Views(examples, 3, size, seed, steps, optimizer, 0.1, 0.5), optimizer


def test_every_pass_takes_each_picture_once_and_passes_go_on_across_epochs():
    batches, _ = views()  # a pass has batches of 4, 4 and 2 pictures; an epoch has 5 batches
    seen = [batch.indices for epoch in range(1, 7) for batch in batches(epoch)]
    assert len(seen) == 30 == 6 * len(batches)
    passes = [torch.cat(seen[at : at + 3]) for at in range(0, 30, 3)]
    for rows in passes:
        assert sorted((rows // 3).tolist()) == list(range(10))
    assert [len(rows) for rows in seen[:6]] == [4, 4, 2, 4, 4, 2]
    assert len({tuple((rows // 3).tolist()) for rows in passes}) == 10
    taken = torch.cat(passes).bincount(minlength=30).view(10, 3)
    assert (taken.sum(1) == 10).all()
    assert (taken.sum(0) > 20).all()  # of 100 draws, each view about 33
    assert torch.equal(torch.cat([b.inputs[:, 0] for b in batches(3)]), torch.cat([b.indices for b in batches(3)]))
    assert torch.equal(batches.examples.labels[seen[4]], list(batches(1))[4].labels)


def test_epochs_are_functions_of_seed_and_epoch():
    rows = lambda seed, epoch: torch.cat([b.indices for b in views(seed)[0](epoch)])  # noqa: E731
    batches, _ = views()
    list(batches(1))
    assert torch.equal(torch.cat([b.indices for b in batches(2)]), rows(0, 2))
    assert not torch.equal(rows(0, 2), rows(1, 2))


def test_the_rate_of_each_step_is_kerass():
    batches, optimizer = views()
    found = [optimizer.param_groups[0]["lr"] for epoch in (1, 2) for _ in batches(epoch)]
    assert found == [0.1 / (1 + 0.5 * step) for step in range(10)]
