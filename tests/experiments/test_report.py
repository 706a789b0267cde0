"""The page in headless Chromium: no error, no request, points that move, and axe-core's verdict."""

import dataclasses

import altair as alt
import numpy as np
import pytest

from experiments import report
from experiments.seeing import answer, curves, journey, lesion, movement, separability, similarity
from experiments.seeing.images import Images
from experiments.seeing.projection import Projections
from experiments.seeing.representation import Representation
from experiments.seeing.section import Picture, Section
from tests import browser

COUNT = 24


def representation(seed: int) -> Representation:
    """Made-up numbers of a network of three blocks, in which the classes come apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT, dtype=np.int32) % 3
    features = [rng.normal(size=(COUNT, 8)) + i * np.eye(3, 8)[labels] for i in range(5)]
    features = [x - x.mean(0) for x in features]
    ratio = rng.uniform(.3, 1, (3, COUNT))
    return Representation(
        ('pixels', 'stem', '1.1', '2.1', '3.1'), labels, np.stack([x @ x.T for x in features]),
        ratio, ratio - 1, 1 - ratio / 2, np.array([.2, .3, .4]), np.array([.3, .4, .3]),
        np.linspace(60, 99, 5), np.linspace(10, 99, 5), 1.0)


NETWORKS = {'residual': representation(0), 'plain': representation(1)}
LESIONS = {
    'residual': lesion.Lesions(('1.1', '2.1', '3.1'), 1.0, np.array([30., 2, 1]), {(0, 1): 9.}),
    'plain': lesion.Lesions(('1.1', '2.1', '3.1'), 2.0, np.array([80., 90, 85]), {(0, 1): 90.}),
}


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A report on made-up numbers."""
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (COUNT, 8, 8, 1), np.uint8),
                    NETWORKS['plain'].labels, ('nought', 'one & "1" </script>', 'two'))
    points = {name: Projections(*rng.normal(size=(2, 5, COUNT, 2)), np.linspace(.2, .4, 5))
              for name in NETWORKS}
    picture = Section('A picture', 'One.\n\nTwo.', pictures={'noise': Picture(
        rng.integers(0, 256, (20, 40, 3), np.uint8), 'Noise.', 'Not a signal.')})
    path = tmp_path_factory.mktemp('report') / 'report.html'
    report.write(path, title='What it has learnt', facts={'data': 'made up'},
                 question=answer.QUESTION, paragraphs=answer.answer(NETWORKS, LESIONS),
                 highlights=answer.highlights(NETWORKS, LESIONS), sections=[
                     journey.section(images, NETWORKS, points), movement.section(NETWORKS),
                     similarity.section(NETWORKS), separability.section(NETWORKS),
                     lesion.section(LESIONS), picture])
    return path


@pytest.fixture(scope='module')
def seen(page):
    """What happens in Chromium."""
    return browser.look('check.js', page, timeout=300)


@pytest.mark.slow
def test_the_page_asks_for_nothing_and_complains_of_nothing(seen):
    assert seen['console'] == [] and seen['requests'] == []
    assert seen['charts'] == 2 + 3 + 2 + 5 + 2


@pytest.mark.slow
def test_the_slider_moves_the_points_by_keyboard_and_loses_none(seen):
    before, after, last = seen['before'], seen['after'], seen['last']
    assert len(before) == len(after) == len(last) == 4 * COUNT  # PCA and UMAP of two networks
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 0.9 * len(before)
    assert sum(a != b for a, b in zip(after, last, strict=True)) > 0.9 * len(before)
    assert seen['keyboard'] == [1, 'stem']


@pytest.mark.slow
def test_an_image_is_shown_where_the_pointer_is(seen):
    assert seen['tooltip'] == [8, 'data:image']


@pytest.mark.slow
def test_the_page_is_accessible_in_light_and_dark(seen):
    for theme in ('light', 'dark'):
        assert seen[theme]['violations'] == []
        assert seen[theme]['score'] >= 95 and seen[theme]['passes'] > 20


@pytest.mark.slow
def test_the_theme_can_be_chosen_and_keeps_the_step(seen):
    assert seen['toggled'] == 'rgb(244, 245, 247)'  # light, while the system is dark
    assert seen['kept'] == seen['last']


@pytest.mark.slow
def test_a_narrow_screen_does_not_scroll_sideways(seen):
    assert seen['overflow'] == 0


def test_the_answer_follows_the_numbers():
    near, far = (dataclasses.replace(NETWORKS['residual'], output_cosine=cosine)
                 for cosine in (np.full((3, COUNT), .95), np.full((3, COUNT), .2)))
    for network, told in ((near, 'stay near their inputs'), (far, 'do not stay near')):
        text = answer.answer({'residual': network}, LESIONS)
        assert told in text[0] and f'{network.output_cosine[0, 0]:.2f}' in text[0]
    assert 'without 2 of the 3 blocks' in text[2] and 'without block 1.1 it is 30.0 %' in text[2]
    rounded = dataclasses.replace(LESIONS['residual'], whole=9.5, deleted=np.array(
        [14.5 - 1e-12, 14.5, 14.0]))  # 5, 5 and 4.5 points
    text = answer.answer({'residual': near}, {'residual': rounded})
    assert text[2].startswith('Most blocks cannot be spared: without 1 of the 3 blocks')
    both = answer.answer(NETWORKS, LESIONS)
    assert 'No block of the plain network can be spared' in both[-1]


def legends(chart):
    """The legends of all layers of a chart; None where there is none."""
    return [layer['encoding'][channel]['legend'] for layer in chart.to_dict()['layer']
            for channel in ('color', 'shape') if channel in layer['encoding']]


def test_a_network_alone_needs_no_legend():
    for name, section, networks in (
            ('movement_branch_over_carried', movement.section, NETWORKS),
            ('separability_probe_of_mean', separability.section, NETWORKS),
            ('deletion', lesion.section, LESIONS)):
        alone = {'residual': networks['residual']}
        assert not any(legends(section(alone).charts[name])), name
        assert all(legends(section(networks).charts[name])), name


def test_swapped_blocks_are_bars_beside_the_error_of_the_whole_network():
    layers = lesion.section(LESIONS).charts['swapping'].to_dict()['layer']
    bars, whole = (layer['data']['values'] for layer in layers)
    assert bars == [{'change': '1.1 and 2.1', 'network': 'residual', 'error': 9.0},
                    {'change': '1.1 and 2.1', 'network': 'plain', 'error': 90.0}]
    assert [row['error'] for row in whole] == [1.0, 2.0]


def test_a_percentage_has_the_interval_of_wilson():
    # (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n), with z = 1.96, by hand.
    np.testing.assert_allclose(curves.interval(50, 100), (40.38, 59.62), atol=0.01)
    np.testing.assert_allclose(curves.interval(98, 100), (93.00, 99.45), atol=0.01)
    np.testing.assert_allclose(curves.interval(100, 300), (98.74, 100), atol=0.01)


def test_charts_are_written_beside_the_page(tmp_path):
    chart = alt.Chart(alt.Data(values=[{'x': 1}])).mark_point().encode(x='x:Q')
    report.write_figures(tmp_path, [Section(
        'A', 'B', charts={'point': chart}, descriptions={'point': 'C'},
        pictures={'dot': Picture(np.zeros((2, 2, 3), np.uint8), 'D')})])
    assert (tmp_path / 'point.svg').read_text().startswith('<svg')
    assert all((tmp_path / name).read_bytes().startswith(b'\x89PNG')
               for name in ('point.png', 'dot.png'))
