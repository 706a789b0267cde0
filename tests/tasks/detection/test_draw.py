"""Names and scores in pictures of detected objects."""

import types

import numpy as np
import pytest

from resnet_jax.tasks.detection.draw import draw


def drawn(name: str, score: float) -> np.ndarray:
    one = types.SimpleNamespace(
        xyxy=np.array([[40.0, 60.0, 200.0, 250.0]]), scores=np.array([score]),
        class_id=np.array([0]), mask=None)
    return np.asarray(draw(np.zeros((320, 320, 3), np.uint8), one, [name]))


@pytest.mark.parametrize(('name', 'as_if'), [
    ('ladybug, ladybeetle, lady beetle', 'ladybug, ladybeetle, lady beetle'),
    ('ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle, ' * 2 + 'seven-spot',
     'ladybug, ladybeetle, lady beetle, ladybird'),
    ('W' * 99, None)])
def test_a_long_name_loses_synonyms_then_letters_but_not_its_score(name, as_if):
    low, high = drawn(name, 0.21), drawn(name, 0.98)
    assert (low != high).any()
    if as_if is not None:
        np.testing.assert_array_equal(low, drawn(as_if, 0.21))
    assert (high[:59, -1] == high[:59, -2]).all()  # no letter is cut by the right border
