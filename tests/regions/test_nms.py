"""Non-maximum suppression is the sequential greedy algorithm, and voting is a weighted mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resnet_jax.regions import nms as nms_lib
from tests.regions import reference

N = 24
EVERY = np.ones(N, bool)
nms = jax.jit(nms_lib.nms, static_argnames=('number', 'before', 'plus_one', 'block'))
vote = jax.jit(nms_lib.vote)


def keep(boxes, scores, valid, threshold, number=N, block=7, **arguments):
    """`nms` as most tests call it, so that it is compiled once."""
    classes = arguments.pop('classes', np.zeros(len(boxes), np.int32))
    return nms(boxes, scores, valid, threshold, number, block=block, classes=classes, **arguments)


def keep_few(*arguments, **keywords):
    """Five of the best nine boxes, whose ends belong to them: also compiled once."""
    return keep(*arguments, number=5, before=9, plus_one=True, **keywords)


def boxes_of(corner, side):
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


def crowd(rng, n, size=400):
    """Boxes around few centres, of whole pixels, and scores with many ties."""
    centre = rng.integers(0, size, (max(n // 15, 1), 2))[rng.integers(0, max(n // 15, 1), n)]
    return (boxes_of(centre + rng.integers(-9, 10, (n, 2)), rng.integers(20, 90, (n, 2))),
            np.round(rng.uniform(size=n), 2).astype(np.float32))


def chain(n):
    """Each box overlaps the next by a third of its width, IoU 1/5, and no other."""
    corner = np.stack([np.arange(n) * 2, np.zeros(n)], -1)
    return boxes_of(corner, np.array([3, 1])), np.linspace(1, 0.1, n, dtype=np.float32)


def indices(kept):
    """As a list, without the padding, which is checked."""
    index, valid = np.asarray(kept.index), np.asarray(kept.valid)
    assert not index[~valid].any() and (np.diff(valid.astype(int)) <= 0).all()
    return list(index[valid])


@settings(max_examples=30, deadline=None)
@given(data=arrays(np.int32, (N, 4), elements=st.integers(0, 12)),
       scores=arrays(np.int32, N, elements=st.integers(-2, 3)), valid=arrays(bool, N),
       classes=arrays(np.int32, N, elements=st.integers(0, 1)),
       threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_the_same_boxes_are_kept_in_the_same_order_as_one_by_one(
        data, scores, valid, classes, threshold):
    """Small boxes of whole pixels: ties, empty boxes, identical ones, IoU at the threshold."""
    boxes = boxes_of(data[:, :2], data[:, 2:])
    scores = scores.astype(np.float32)
    for block, number in ((N, N), (7, N)):
        got = keep(boxes, scores, valid, threshold, number, block, classes=classes)
        assert indices(got) == reference.greedy(boxes, scores, valid, threshold, number, classes)
    got = keep_few(boxes, scores, valid, threshold, classes=classes)
    assert indices(got) == reference.greedy(
        boxes, scores, valid, threshold, 5, classes, before=9, one=1)


@pytest.mark.slow
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('n', [1000, 3000])
def test_thousands_of_boxes_are_kept_as_one_by_one(n, threshold):
    boxes, scores = crowd(np.random.default_rng(n), n)
    valid = np.random.default_rng(0).uniform(size=n) < 0.9
    for number in (n, 300):
        got = nms(boxes, scores, valid, threshold, number)
        assert indices(got) == reference.greedy(boxes, scores, valid, threshold, number)


def test_a_chain_of_boxes_is_settled_however_long():
    boxes, scores = chain(N)
    for block in (N, 7):
        assert indices(keep(boxes, scores, EVERY, 0.1, block=block)) == list(range(0, N, 2))
        assert indices(keep(boxes, scores, EVERY, 0.25, block=block)) == list(range(N))


@pytest.mark.slow
def test_chains_and_identical_boxes_by_the_thousand():
    boxes, scores = chain(3000)
    everything = np.ones(3000, bool)
    assert indices(nms(boxes, scores, everything, 0.1, 3000)) == list(range(0, 3000, 2))
    order = np.random.default_rng(0).permutation(3000)
    got = nms(boxes[order], scores[order], everything, 0.1, 3000)
    assert indices(got) == list(np.argsort(order)[::2])
    assert indices(nms(np.tile(boxes[:1], (3000, 1)), scores * 0, everything, 0.9, 3000)) == [0]


def test_what_is_absent_or_not_finite_is_never_kept_and_suppresses_nothing():
    boxes, scores = chain(N)
    nothing = keep(boxes, scores, np.zeros(N, bool), 0.1)
    assert indices(nothing) == []
    boxes[2, 1], boxes[5, 2], scores[8], scores[11] = np.nan, np.inf, np.nan, np.inf
    got = indices(keep(boxes, scores, EVERY, 0.1))
    valid = ~np.isin(np.arange(N), [2, 5, 8, 11])
    assert got == reference.greedy(chain(N)[0], scores, valid, 0.1, N)


def test_only_the_best_before_take_part():
    boxes, scores = np.tile(np.float32([[0, 0, 9, 9]]), (N, 1)), np.arange(N, dtype=np.float32)
    boxes[:4] += 100  # the worst of all
    assert indices(keep(boxes, scores, EVERY, 0.5)) == [N - 1, 3]
    assert indices(keep_few(boxes, scores, EVERY, 0.5)) == [N - 1]


def test_plus_one_widens_boxes():
    boxes, scores = np.zeros((N, 4), np.float32), np.linspace(1, 0.1, N, dtype=np.float32)
    boxes[:3] = [[0, 0, 9, 9], [10, 0, 19, 9], [5, 0, 14, 9]]  # the last has 5 of 15 columns
    three = np.arange(N) < 3
    assert indices(keep_few(boxes, scores, three, 0.34)) == [0, 1, 2]
    assert indices(keep_few(boxes, scores, three, 0.33)) == [0, 1]
    assert indices(keep(boxes, scores, three, 0.33)) == [0, 1, 2]


def test_images_of_a_batch_are_independent_and_devices_loop_alone():
    rng = np.random.default_rng(0)
    many = [crowd(rng, N) for _ in range(7)] + [chain(N)]
    boxes, scores = (np.stack(x) for x in zip(*many, strict=True))
    valid = rng.uniform(size=(8, N)) < 0.8

    def of_device(boxes, scores, valid):
        return nms_lib.nms(boxes, scores, valid, 0.15, N, block=7)

    mesh = Mesh(jax.devices()[:8], 'data')
    sharded = jax.jit(jax.shard_map(
        of_device, mesh=mesh, in_specs=P('data'), out_specs=P('data'), check_vma=False)
    ).lower(boxes, scores, valid).compile()
    assert 'all-reduce' not in sharded.as_text()
    got = jax.tree.map(np.asarray, sharded(*(jax.device_put(x, s) for x, s in zip(
        (boxes, scores, valid), sharded.input_shardings[0], strict=True))))
    for i in range(8):
        assert indices(jax.tree.map(lambda x, i=i: x[i], got)) == reference.greedy(
            boxes[i], scores[i], valid[i], 0.15, N)


def test_detections_of_all_classes_are_the_best_of_each():
    rng = np.random.default_rng(0)
    boxes = np.stack([crowd(rng, 10, size=60)[0] for _ in range(3)], 1)  # [R, K, 4]
    scores = np.round(rng.uniform(size=(10, 3)), 1).astype(np.float32)
    valid = np.arange(10) != 4

    @jax.jit
    def detections(boxes, scores, valid):
        return nms_lib.nms_by_class(boxes, scores, valid, 0.3, 8, least_score=0.2)

    expected = []
    for k in range(3):
        expected += [(-scores[r, k], r * 3 + k) for r in reference.greedy(
            boxes[:, k], scores[:, k], valid & (scores[:, k] > np.float32(0.2)), 0.3, 10)]
    got = detections(boxes, scores, valid)
    assert indices(got) == [index for _, index in sorted(expected)[:8]]
    of_all_classes = jax.eval_shape(detections, boxes[:, :1], scores, valid)
    assert of_all_classes.index.shape == (8,)


def test_voting_is_the_mean_of_overlapping_boxes_weighted_by_score():
    rng = np.random.default_rng(0)
    boxes, scores = crowd(rng, 12, size=30)
    scores, valid = scores - np.float32(0.2), np.arange(12) != 3
    boxes[3] = np.nan
    kept = np.concatenate([boxes[:3], np.float32([[900, 900, 910, 910]])])
    got = np.asarray(vote(kept, boxes, scores, valid))
    for box, result in zip(kept[:3], got, strict=False):
        voters = [i for i in np.flatnonzero(valid) if reference.iou(box, boxes[i]) >= 0.5]
        weights = np.maximum(scores[voters], 0)
        np.testing.assert_allclose(result, weights @ boxes[voters] / weights.sum(), rtol=1e-5)
    np.testing.assert_array_equal(got[3], kept[3])  # no votes
    np.testing.assert_array_equal(vote(kept, boxes, scores, np.zeros(12, bool)), kept)


def test_boxes_that_are_kept_have_gradients_although_the_choice_has_none():
    def loss(boxes, scores):
        kept = nms_lib.nms(boxes, scores, EVERY, 0.3, 5)
        one_hot = jax.nn.one_hot(kept.index, N) * kept.valid[:, None]
        return jnp.sum(one_hot @ boxes) + jnp.sum(one_hot @ scores)

    boxes, scores = chain(N)
    of_boxes, of_scores = jax.jit(jax.grad(loss, (0, 1)))(boxes, scores)
    np.testing.assert_array_equal(of_boxes[:, 0], np.arange(N) < 5)
    np.testing.assert_array_equal(of_scores, np.arange(N) < 5)


def test_other_numbers_need_no_other_compilation():
    boxes, scores = crowd(np.random.default_rng(0), N)
    keep(boxes, scores, EVERY, 0.3)
    compiled = nms._cache_size()
    keep(boxes + 1, scores - 1, np.arange(N) < 3, 0.7)
    assert nms._cache_size() == compiled


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('n', [1000, 6000])
@pytest.mark.slow
def test_torchvision_keeps_the_same(n, threshold):
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.ops import batched_nms
    from torchvision.ops import nms as torch_nms

    rng = np.random.default_rng(n)
    boxes, scores = crowd(rng, n)
    # No IoU at the threshold, which torchvision compares in float64.
    boxes += rng.uniform(-0.5, 0.5, boxes.shape).astype(np.float32)
    valid, classes = np.ones(n, bool), rng.integers(0, 3, n)
    expected = torch_nms(torch.tensor(boxes), torch.tensor(scores), threshold)
    assert indices(nms(boxes, scores, valid, threshold, n)) == expected.tolist()
    expected = batched_nms(*map(torch.tensor, (boxes, scores, classes)), threshold)
    got = nms(boxes, scores, valid, threshold, n, classes=classes)
    assert set(indices(got)) == set(expected.tolist())  # the order of ties is not defined there
