"""Assignment of ground truth to candidates."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resnet_jax.regions.matching import NEGATIVE, NEITHER, POSITIVE, exempt, match

LOOSE = st.sampled_from(np.float32([0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]))  # many ties
match_jit = jax.jit(match, static_argnames='best_of_each')


def by_loops(iou, present, positive, negative, best_of_each, valid):
    index, label = [], []
    columns = [g for g in range(iou.shape[1]) if present[g]]
    for a, row in enumerate(iou):
        if not valid[a]:
            index.append(0)
            label.append(NEITHER)
            continue
        best = max([row[g] for g in columns], default=0)
        index.append(next((g for g in columns if row[g] == best > 0), 0))
        tied = [g for g in columns
                if row[g] > 0 and row[g] == max(iou[valid, g])]
        if best >= positive or (best_of_each and tied):
            label.append(POSITIVE)
        else:
            label.append(NEGATIVE if negative[0] <= best < negative[1] else NEITHER)
    return index, label


@settings(max_examples=60, deadline=None)
@given(iou=arrays(np.float32, (6, 3), elements=LOOSE), present=arrays(bool, 3),
       valid=arrays(bool, 6), best_of_each=st.booleans(),
       bounds=st.sampled_from([(0.7, (0.0, 0.3)), (0.5, (0.1, 0.5)), (0.5, (0.0, 0.5))]))
def test_labels_and_indices_equal_loops(iou, present, valid, best_of_each, bounds):
    bounds = jax.tree.map(np.float32, bounds)
    index, label = match_jit(iou, present, *bounds, best_of_each=best_of_each, valid=valid)
    expected = by_loops(iou, present, *bounds, best_of_each, valid)
    np.testing.assert_array_equal(label, expected[1])
    np.testing.assert_array_equal(index, expected[0])


def test_an_image_without_objects_is_all_background():
    iou = np.float32([[0.9, 0.4], [0.2, 0.8], [0.0, 0.0]])  # of padding, whatever it is
    index, label = match_jit(iou, np.zeros(2, bool), 0.7, (0.0, 0.3), best_of_each=True)
    np.testing.assert_array_equal(label, [NEGATIVE] * 3)
    np.testing.assert_array_equal(index, [0, 0, 0])
    # With the bounds of the paper's code, an overlap of 0 makes no background.
    _, label = match_jit(iou, np.zeros(2, bool), 0.5, (0.1, 0.5), best_of_each=True)
    np.testing.assert_array_equal(label, [NEITHER] * 3)


def test_a_poor_best_match_keeps_its_own_best_ground_truth():
    iou = np.float32([[0.4, 0.5], [0.1, 0.6], [0.0, 0.0]])
    index, label = match_jit(iou, np.ones(2, bool), 0.7, (0.0, 0.3), best_of_each=True)
    np.testing.assert_array_equal(label, [POSITIVE, POSITIVE, NEGATIVE])
    np.testing.assert_array_equal(index[:2], [1, 1])  # although the first is the best of 0


def test_an_object_that_nothing_overlaps_makes_no_candidate_positive():
    iou = np.float32([[0.0, 0.8], [0.0, 0.1], [0.0, 0.2]])
    _, label = match_jit(iou, np.ones(2, bool), 0.7, (0.0, 0.3), best_of_each=True)
    np.testing.assert_array_equal(label, [POSITIVE, NEGATIVE, NEGATIVE])


def test_batches_are_matched_image_by_image():
    rng = np.random.default_rng(0)
    iou, present = rng.uniform(size=(2, 3, 2)).astype(np.float32), rng.uniform(size=(2, 2)) < 0.7
    together = match_jit(iou, present, 0.7, (0.0, 0.3), best_of_each=True)
    for i in range(2):
        one = match_jit(iou[i], present[i], 0.7, (0.0, 0.3), best_of_each=True)
        for a, b in zip(one, together, strict=True):
            np.testing.assert_array_equal(a, b[i])


def test_only_negatives_within_a_crowd_are_exempt():
    label = np.int32([NEGATIVE, NEGATIVE, POSITIVE, NEITHER])
    ioa = np.float32([[0.7, 0], [0.69, 0.9], [1, 0], [1, 0]])
    np.testing.assert_array_equal(
        exempt(label, ioa, np.array([True, False])), [NEITHER, NEGATIVE, POSITIVE, NEITHER])


def test_torchvision_matches_the_same():
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    import torch
    from torchvision.models.detection._utils import Matcher

    rng = np.random.default_rng(0)
    for best_of_each, ties in ((True, True), (True, False), (False, True)):
        iou = rng.uniform(0.01, 1, (50, 7)).astype(np.float32)
        iou = np.round(iou, 1) + np.float32(0.01) if ties else iou
        expected = Matcher(0.7, 0.3, best_of_each)(torch.tensor(iou.T)).numpy()
        index, label = match_jit(iou, np.ones(7, bool), 0.7, (0.0, 0.3), best_of_each=best_of_each)
        np.testing.assert_array_equal(
            label, np.select([expected >= 0, expected == -1], [POSITIVE, NEGATIVE], NEITHER))
        np.testing.assert_array_equal(np.asarray(index)[expected >= 0], expected[expected >= 0])
