"""The breakdown of errors."""

import pytest

from resnet_jax.tasks.detection.errors import KINDS, breakdown
from tests.tasks.detection.random_sets import found_of, objects_of, random_set

OBJECT = [0, 0, 10, 10, 0, 0]


def kinds(objects, found, **options):
    """The kinds that occur, with their numbers."""
    counts = breakdown([objects_of(objects)], [found_of(found)], **options)
    assert tuple(counts) == KINDS
    return {kind: count for kind, count in counts.items() if count}


@pytest.mark.parametrize(('detection', 'expected'), [
    ([0, 0, 10, 10, 0, 0.9], {'correct': 1}),
    ([0, 0, 10, 5, 0, 0.9], {'correct': 1}),  # IoU 0.5
    ([0, 0, 10, 4, 0, 0.9], {'localization': 1, 'missed': 1}),
    ([0, 0, 10, 1, 0, 0.9], {'localization': 1, 'missed': 1}),  # IoU 0.1
    ([0, 0, 9, 1, 0, 0.9], {'background': 1, 'missed': 1}),
    ([0, 0, 10, 10, 1, 0.9], {'class': 1, 'missed': 1}),
    ([0, 0, 10, 4, 1, 0.9], {'background': 1, 'missed': 1}),  # wrong in class and place
    ([50, 50, 60, 60, 0, 0.9], {'background': 1, 'missed': 1}),
])
def test_a_detection_has_the_kind_that_its_overlaps_and_class_say(detection, expected):
    assert kinds([OBJECT], [detection]) == expected


def test_an_object_found_twice_has_a_duplicate():
    assert kinds([OBJECT], [[0, 0, 10, 9, 0, 0.9], [0, 0, 10, 10, 0, 0.8]]) == {
        'correct': 1, 'duplicate': 1}


def test_a_second_detection_takes_the_next_object_that_it_overlaps_enough():
    neighbour = [0, 0, 10, 8, 0, 0]
    assert kinds([OBJECT, neighbour], [[0, 0, 10, 10, 0, 0.9], [0, 0, 10, 10, 0, 0.8]]) == {
        'correct': 2}


def test_the_detection_of_higher_score_takes_the_object():
    assert kinds([OBJECT], [[0, 0, 10, 6, 0, 0.8], [0, 0, 10, 4, 0, 0.9]]) == {
        'correct': 1, 'localization': 1}


def test_objects_without_detections_are_missed():
    assert kinds([OBJECT, OBJECT], []) == {'missed': 2}


def test_detections_without_objects_are_background():
    assert kinds([], [[0, 0, 10, 10, 0, 0.9]]) == {'background': 1}


def test_detections_below_the_least_score_are_left_out():
    found = [[0, 0, 10, 10, 0, 0.25]]
    assert kinds([OBJECT], found) == {'missed': 1}
    assert kinds([OBJECT], found, least_score=0.25) == {'correct': 1}


def test_ignored_objects_are_neither_missed_nor_wrongly_found():
    crowd = [0, 0, 100, 100, 0, 1]
    assert kinds([crowd], []) == {}
    assert kinds([crowd], [[20, 20, 30, 30, 0, 0.9], [20, 20, 30, 30, 0, 0.8]]) == {}
    assert kinds([crowd], [[20, 20, 30, 30, 1, 0.9]]) == {'background': 1}
    assert kinds([OBJECT, crowd], [[0, 0, 10, 10, 0, 0.9]]) == {'correct': 1}


def test_every_object_is_found_or_missed():
    truth, found = random_set(0, num_images=20)
    counts = breakdown(truth, found)
    assert all(counts.values())
    assert counts['correct'] + counts['missed'] == sum((~x.ignore).sum() for x in truth)


def test_no_images_have_no_errors():
    assert breakdown([], []) == dict.fromkeys(KINDS, 0)
