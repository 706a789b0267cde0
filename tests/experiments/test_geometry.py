"""CKA, scatter, neighbours and probe against scikit-learn and independent formulas."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from experiments.seeing import geometry, probe

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 60)
X = (RNG.normal(size=(60, 4, 2)) + LABELS[:, None, None]).astype(np.float32)
Y = RNG.normal(size=(60, 5)).astype(np.float32) + X[:, :3, :].reshape(60, -1)[:, :5]
FLAT = X.reshape(60, -1).astype(np.float64)


def test_cka_is_the_norm_of_the_cross_covariance_over_those_of_the_covariances():
    # Kornblith et al., equation 6: |Y'X|^2 / (|X'X| |Y'Y|), of centred features.
    x, y = (part - part.mean(0) for part in (FLAT, Y.astype(np.float64)))
    expected = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert geometry.cka(geometry.gram(X), geometry.gram(Y)) == pytest.approx(expected, rel=1e-5)


def test_cka_does_not_see_rotations_and_scales_but_stretching():
    rotation = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    k = geometry.gram(X)
    assert geometry.cka(k, geometry.gram(3 * FLAT @ rotation)) == pytest.approx(1, abs=1e-5)
    assert geometry.cka(k, geometry.gram(FLAT * np.arange(1, 9) ** 2)) < 0.98


def test_scatter_is_the_ratio_of_the_traces_of_the_scatter_matrices():
    lda = LinearDiscriminantAnalysis(solver='eigen', store_covariance=True).fit(FLAT, LABELS)
    within = np.trace(lda.covariance_)  # of the classes, weighted by their sizes
    between = np.trace(np.cov(FLAT.T, bias=True)) - within
    assert geometry.scatter(geometry.gram(X), LABELS) == pytest.approx(between / within, rel=1e-5)


def test_distances_and_neighbours_are_those_of_scikit_learn():
    k = geometry.gram(X)
    np.testing.assert_allclose(geometry.distances(k), pairwise_distances(FLAT), atol=2e-3)
    expected = cross_val_score(KNeighborsClassifier(1), FLAT, LABELS, cv=LeaveOneOut()).mean()
    assert geometry.neighbours(k, LABELS) == pytest.approx(100 * expected)


def test_principal_components_of_the_gram_matrix_are_those_of_scikit_learn():
    points, shares = geometry.principal(geometry.gram(X), 3)
    pca = PCA(3).fit(FLAT)
    np.testing.assert_allclose(np.abs(points), np.abs(pca.transform(FLAT)), atol=1e-3)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=1e-4)


def test_alignment_undoes_a_rotation_with_a_reflection():
    points = geometry.unit(FLAT[:, :2])
    turned = points @ np.array([[np.cos(1), np.sin(1)], [np.sin(1), -np.cos(1)]])
    np.testing.assert_allclose(geometry.aligned(turned, points), points, atol=1e-12)
    assert np.square(points).sum(1).mean() == pytest.approx(1)


def test_the_probe_is_scikit_learns_logistic_regression():
    train, test = FLAT[:40], FLAT[40:]
    pca = PCA().fit(train)
    scale = np.sqrt(np.var(pca.transform(train), axis=0, ddof=1).mean())
    expected = LogisticRegression(max_iter=1000).fit(
        (train - train.mean(0)) / scale, LABELS[:40]).score(
        (test - train.mean(0)) / scale, LABELS[40:])
    found = probe.accuracy(train, LABELS[:40], test, LABELS[40:])
    assert found == pytest.approx(100 * expected)
    assert 40 < found < 100


def test_the_probe_sees_features_of_any_scale_alike():
    found = [probe.accuracy(scale * FLAT[:40], LABELS[:40], scale * FLAT[40:], LABELS[40:])
             for scale in (1e-3, 1, 1e3)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize('size, positions', [(8, 8), (32, 8), (14, 7), (9, 5), (2, 2)])
def test_maps_are_averaged_to_at_most_eight_positions(size, positions):
    maps = RNG.normal(size=(2, size, size, 3)).astype(np.float32)
    found = probe.coarse(maps).reshape(2, positions, positions, 3)
    window = -(-size // 8)
    np.testing.assert_allclose(found[:, 0, 0], maps[:, :window, :window].mean((1, 2)), rtol=1e-4,
                               atol=1e-6)
    last = (positions - 1) * window
    np.testing.assert_allclose(found[:, -1, -1], maps[:, last:, last:].mean((1, 2)), rtol=1e-4,
                               atol=1e-6)
