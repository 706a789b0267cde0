"""Anchors of py-faster-rcnn, detectron2 and torchvision."""

import jax
import numpy as np
import pytest

from resnet_jax.regions import anchors

grid = jax.jit(anchors.grid, static_argnums=(1, 2, 3))
COCO = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1, 2)


def test_the_papers_anchors_are_those_of_its_code():
    """The table in generate_anchors.py of py-faster-rcnn minus 1, since MATLAB counts from 1."""
    table = [(-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200),
             (-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264),
             (-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360)]
    got = anchors.base_anchors((128, 256, 512), RATIOS, 'paper')
    np.testing.assert_array_equal(got, np.array(table) - 1)
    assert len(anchors.base_anchors((64, 128, 256, 512), RATIOS, 'paper')) == 12


def test_detectron2s_grid_is_that_of_its_own_test():
    """tests/modeling/test_anchor_generator.py of detectron2: stride 4, a map of 1 x 2."""
    base = [(-32, -8, 32, 8), (-16, -16, 16, 16), (-8, -32, 8, 32),
            (-64, -16, 64, 16), (-32, -32, 32, 32), (-16, -64, 16, 64)]
    got = grid(anchors.base_anchors((32, 64), (0.25, 1, 4)), 1, 2, 4)
    shifted = [(x1 + 4, y1, x2 + 4, y2) for x1, y1, x2, y2 in base]
    np.testing.assert_array_equal(got, base + shifted)
    got = anchors.base_anchors(COCO, RATIOS)  # not rounded
    np.testing.assert_allclose(got[0], np.array([-1, -0.5, 1, 0.5]) * 32 / 2**0.5, rtol=1e-6)
    np.testing.assert_allclose((got[:, 2] - got[:, 0]) * (got[:, 3] - got[:, 1]),
                               np.repeat(np.square(COCO), 3), rtol=1e-6)


def test_torchvisions_anchors_are_whole_numbers_with_ratios_outside():
    got = anchors.base_anchors(COCO, RATIOS, 'torchvision')
    assert got.shape == (15, 4) and got.dtype == np.float32
    np.testing.assert_array_equal(got[:2], [(-23, -11, 23, 11), (-45, -23, 45, 23)])
    np.testing.assert_array_equal(got[5], (-16, -16, 16, 16))
    np.testing.assert_array_equal(got[-1], (-181, -362, 181, 362))


def test_the_grid_goes_by_rows_then_columns_then_base_anchors():
    base = np.float32([[0, 0, 1, 1], [0, 0, 2, 2]])
    got = np.asarray(grid(base, 3, 4, 16)).reshape(3, 4, 2, 4)
    np.testing.assert_array_equal(got[2, 1, 1], [16, 32, 18, 34])
    np.testing.assert_array_equal(got[0, 3, 0], [48, 0, 49, 1])


def test_an_unknown_rule_is_rejected():
    with pytest.raises(ValueError, match="'torchvision' or 'paper', not 'caffe'"):
        anchors.base_anchors(COCO, RATIOS, 'caffe')


def test_torchvision_generates_the_same():
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    for sizes, ratios in ((COCO, RATIOS), ((9, 13, 19), (0.7, 1.0, 1.5))):
        images = ImageList(torch.zeros(1, 3, 48, 80), [(48, 80)])
        expected = AnchorGenerator((sizes,), (ratios,))(images, [torch.zeros(1, 8, 3, 5)])[0]
        got = grid(anchors.base_anchors(sizes, ratios, 'torchvision'), 3, 5, 16)
        np.testing.assert_array_equal(got, expected)
