"""Targets of masks from crops relative to boxes."""

import jax
import numpy as np

from resnet_jax.regions.crops import mask_targets

targets = jax.jit(mask_targets, static_argnums=3)


def test_a_cell_is_the_mean_of_what_lies_in_it():
    crop = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
    box = np.float32([10, 20, 26, 28])  # cells of the crop are 2 pixels wide and 1 high
    regions = np.float32([
        box,  # 2 x 2 cells of the crop in each
        [10, 20, 18, 24],  # a quarter: the crop itself
        [2, 16, 34, 32],  # twice the box, and so zero outside
        [11, 20, 27, 28],  # half a cell to the right
        [40, 40, 50, 50],  # beside it
    ])
    got = targets(np.broadcast_to(crop, (5, 8, 8)), np.broadcast_to(box, (5, 4)), regions, 4)
    crop = crop.astype(np.float64)
    np.testing.assert_allclose(got[0], crop.reshape(4, 2, 4, 2).mean((1, 3)), atol=1e-6)
    np.testing.assert_allclose(got[1], crop[:4, :4], atol=1e-6)
    around = np.zeros((4, 4))
    around[1:3, 1:3] = crop.reshape(2, 4, 2, 4).mean((1, 3))
    np.testing.assert_allclose(got[2], around, atol=1e-6)
    halves = np.repeat(crop, 2, axis=1)[:, 1:]
    shifted = np.pad(halves, ((0, 0), (0, 1))).reshape(4, 2, 4, 4).mean((1, 3))
    np.testing.assert_allclose(got[3], shifted, atol=1e-6)
    assert not np.any(got[4])


def test_a_box_or_region_of_no_area_has_no_mask():
    crops = np.ones((5, 8, 8), np.uint8)
    box, empty = np.float32([0, 0, 8, 8]), np.float32([3, 0, 3, 8])
    inverted = np.float32([5, 0, 3, 8])
    got = targets(crops, np.stack([empty, box, box, inverted, box]),
                  np.stack([box, empty, inverted, box, box]), 4)
    assert np.isfinite(got).all() and not np.any(got[:4]) and np.all(got[4] == 1)
