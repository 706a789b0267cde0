"""Areas, overlaps, coding and clipping of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resnet_jax.regions import boxes
from tests.regions import reference

COORDINATES = st.floats(-50, 50, width=32)
EXAMPLES = settings(max_examples=20, deadline=None)

iou, area, clip, inside = (jax.jit(f, static_argnames='plus_one')
                           for f in (boxes.iou, boxes.area, boxes.clip, boxes.inside))
overlaps = jax.jit(lambda a, b: [
    (boxes.iou(a, b, plus_one), boxes.ioa(a, b, plus_one)) for plus_one in (False, True)])
encode = jax.jit(boxes.encode, static_argnames=('weights', 'plus_one'))
decode = jax.jit(boxes.decode, static_argnames=('weights', 'max_log_scale', 'plus_one'))
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def proper(x):
    """Boxes with sides of at least 1."""
    low, high = np.minimum(x[..., :2], x[..., 2:]), np.maximum(x[..., :2], x[..., 2:])
    return np.concatenate([low, np.maximum(high, low + 1)], -1)


@EXAMPLES
@given(a=arrays(np.float32, (3, 4), elements=COORDINATES),
       b=arrays(np.float32, (2, 4), elements=COORDINATES), plus_one=st.booleans())
def test_overlaps_equal_the_definition_also_for_inverted_and_empty_boxes(a, b, plus_one):
    a[0], b[0] = [1, 1, 1, 5], [2, 3, 1, 1]
    for got, whole in zip(overlaps(a, b)[plus_one], (
            lambda x, y, inter: x + y - inter, lambda x, y, inter: x), strict=True):
        for i, j in np.ndindex(3, 2):
            areas = reference.overlap(*np.float64([a[i], b[j]]), float(plus_one))
            expected = areas[2] / whole(*areas) if whole(*areas) > 0 else 0
            np.testing.assert_allclose(got[i, j], expected, rtol=1e-4, atol=1e-6)


def test_a_box_overlaps_wholly_with_itself_and_a_pixel_has_an_area_with_plus_one():
    box, pixel = np.float32([[2, 3, 7, 5]]), np.float32([[3, 3, 3, 3]])
    assert iou(box, box) == 1
    assert area(pixel) == 0 and area(pixel, plus_one=True) == 1
    assert iou(pixel, pixel) == 0 and iou(pixel, pixel, plus_one=True) == 1
    assert area(box) == 10 and area(box, plus_one=True) == 18
    assert np.all(iou(np.full((1, 4), np.nan, np.float32), box) == 0)


@EXAMPLES
@given(a=arrays(np.float32, (5, 4), elements=COORDINATES),
       b=arrays(np.float32, (5, 4), elements=COORDINATES), plus_one=st.booleans())
def test_decoding_inverts_coding(a, b, plus_one):
    a, b = proper(a), proper(b)
    deltas = encode(a, b, weights=WEIGHTS, plus_one=plus_one)
    got = decode(deltas, b, weights=WEIGHTS, max_log_scale=10.0, plus_one=plus_one)
    np.testing.assert_allclose(got, a, atol=1e-3)


def test_codes_are_shifts_and_logs_of_scales_times_weights():
    anchor, box = np.float32([10, 20, 30, 60]), np.float32([20, 10, 60, 30])
    expected = np.array([20 / 20, -20 / 40, np.log(40 / 20), np.log(20 / 40)])
    np.testing.assert_allclose(encode(box, anchor), expected, rtol=1e-6)
    np.testing.assert_allclose(
        encode(box, anchor, weights=WEIGHTS), expected * np.array(WEIGHTS), rtol=1e-6)
    np.testing.assert_allclose(  # both ends belong to the box
        encode(box, anchor, plus_one=True),
        [20 / 21, -20 / 41, np.log(41 / 21), np.log(21 / 41)], rtol=1e-6)


def test_py_faster_rcnn_decodes_to_boxes_one_pixel_larger():
    """`lib/fast_rcnn/bbox_transform.py` there subtracts no 1 at the end; the MATLAB code does."""
    anchor, box = np.float32([10, 20, 30, 60]), np.float32([20, 10, 60, 30])
    dx, dy, dw, dh = np.asarray(encode(box, anchor, plus_one=True))
    width, height = 21, 41
    x, y = dx * width + anchor[0] + width / 2, dy * height + anchor[1] + height / 2
    w, h = np.exp(dw) * width, np.exp(dh) * height
    np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2],
                               np.add(box, [0, 0, 1, 1]), rtol=1e-5)


def test_decoding_limits_the_scale_and_handles_boxes_for_each_class():
    anchors = np.float32([[0, 0, 16, 16], [8, 8, 24, 24]])
    deltas = np.zeros((2, 3, 4), np.float32)
    deltas[..., 2] = 100
    got = np.asarray(decode(deltas, anchors[:, None]))
    sides = got[..., 2:] - got[..., :2]
    np.testing.assert_allclose(sides, np.broadcast_to([1000, 16], (2, 3, 2)), rtol=1e-5)
    deltas[..., 2] = 5
    got = np.asarray(decode(deltas, anchors[:, None], max_log_scale=None))
    np.testing.assert_allclose(got[..., 2] - got[..., 0], 16 * np.exp(5), rtol=1e-5)


def test_boxes_of_no_area_have_code_0_and_finite_gradients():
    anchors = np.float32([[0, 0, 10, 10], [5, 5, 5, 9], [0, 0, 10, 10], [9, 9, 1, 1]])
    targets = np.float32([[3, 3, 3, 3], [0, 0, 10, 10], [8, 8, 2, 9], [1, 1, 9, 9]])
    codes = np.asarray(encode(targets, anchors))
    assert np.isfinite(codes).all() and not codes[0].any() and not codes[3].any()
    assert not codes[1, 0] and codes[1, 1] and not codes[2, 0] and codes[2, 1]  # by axes

    def loss(a, b):
        codes = boxes.encode(a, b)
        return codes.sum() + boxes.decode(codes, b).sum()

    for gradient in jax.jit(jax.grad(loss, (0, 1)))(targets, anchors):
        assert np.isfinite(gradient).all()


def test_clipping_and_inside_take_the_size_of_each_image():
    sizes = np.int32([[10, 20], [30, 5]])  # height, width
    x = np.float32([[[-1, 2, 25, 31]], [[-1, 2, 25, 31]]])
    np.testing.assert_array_equal(clip(x, sizes)[:, 0], [[0, 2, 20, 10], [0, 2, 5, 30]])
    np.testing.assert_array_equal(
        clip(x, sizes, plus_one=True)[:, 0], [[0, 2, 19, 9], [0, 2, 4, 29]])
    per_class = np.broadcast_to(x[:, :, None], (2, 1, 3, 4))
    np.testing.assert_array_equal(clip(per_class, sizes)[1, 0, 2], [0, 2, 5, 30])
    anchors = np.float32([[0, 0, 5, 10], [0, 0, 4, 9], [-1, 0, 4, 9], [0, 0, 20, 10]])
    np.testing.assert_array_equal(
        inside(anchors, sizes), [[1, 1, 0, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(
        inside(anchors, sizes, plus_one=True), [[0, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(inside(anchors, sizes[1]), [1, 1, 0, 0])


def test_bfloat16_boxes_are_computed_in_float32_and_float64_ones_in_float64():
    x = jax.ShapeDtypeStruct((1, 4), jnp.bfloat16)
    for f in (boxes.iou, boxes.encode, boxes.decode):
        assert jax.eval_shape(f, x, x).dtype == jnp.float32
        with jax.enable_x64(True):
            assert jax.eval_shape(f, np.zeros((1, 4)), np.zeros((1, 4))).dtype == np.float64


def test_torchvision_gives_the_same():
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import box_iou, clip_boxes_to_image

    rng = np.random.default_rng(0)
    a, b = proper(rng.uniform(-50, 300, (2, 40, 4)).astype(np.float32))
    coder = BoxCoder(WEIGHTS)
    deltas = coder.encode_single(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(encode(a, b, weights=WEIGHTS), deltas, rtol=1e-5, atol=1e-5)
    deltas = rng.normal(size=(40, 4)).astype(np.float32) * 20
    np.testing.assert_allclose(
        decode(deltas, b, weights=WEIGHTS),
        coder.decode_single(torch.tensor(deltas), torch.tensor(b)), rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(iou(a, b), box_iou(torch.tensor(a), torch.tensor(b)), atol=1e-6)
    np.testing.assert_array_equal(
        clip(a, np.int32([100, 200])), clip_boxes_to_image(torch.tensor(a), (100, 200)))
