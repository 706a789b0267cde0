"""Measures of a representation that need only the inner products of its images.

X is [N, D] with one row per image and centred columns. K = X X' is [N, N] however large D is, and
holds every distance and angle between the images.
"""

import numpy as np


def gram(features: np.ndarray) -> np.ndarray:
    """K of centred features: [N, ...] -> float64 [N, N]."""
    x = np.asarray(features, np.float32).reshape(len(features), -1)
    x = x - x.mean(0, dtype=np.float64).astype(np.float32)
    return (x @ x.T).astype(np.float64)


def cka(k: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations of the same images, from 0 to 1.

    S. Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, section 3:
    <K, L> / (|K| |L|). 1 where they are equal but for a rotation and a scale.
    """
    return float((k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum()))


def scatter(k: np.ndarray, labels: np.ndarray) -> float:
    """Between-class over within-class scatter, tr(S_B) / tr(S_W).

    K. Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, section 10.2.
    """
    within = float(np.trace(k))
    for label in np.unique(labels):
        members = labels == label
        within -= k[np.ix_(members, members)].sum() / members.sum()
    return (float(np.trace(k)) - within) / within


def distances(k: np.ndarray) -> np.ndarray:
    """Euclidean distances between the images: [N, N]."""
    squares = np.diag(k)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * k, 0))


def neighbours(k: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy in percent of naming each image after its nearest neighbour among the others."""
    distance = distances(k)
    np.fill_diagonal(distance, np.inf)
    return 100 * float(np.mean(labels[distance.argmin(1)] == labels))


def principal(k: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the principal components, and the share of the variance of each.

    The eigenvectors of K, scaled, are the principal components' scores.

    Returns:
      [N, dimensions], and [dimensions], in descending order.
    """
    values, vectors = np.linalg.eigh(k)
    values, vectors = np.maximum(values[::-1][:dimensions], 0), vectors[:, ::-1][:, :dimensions]
    return vectors * np.sqrt(values), values / np.trace(k)


def aligned(points: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Centred points [N, d], turned and mirrored to lie as near to others as they can.

    Orthogonal Procrustes; P. Schönemann, "A generalized solution of the orthogonal Procrustes
    problem", 1966.
    """
    u, _, v = np.linalg.svd(points.T @ to)
    return points @ (u @ v)


def unit(points: np.ndarray) -> np.ndarray:
    """Centred, and scaled to a root mean square distance of 1 from the centre: [N, d]."""
    points = points - points.mean(0)
    return points / np.sqrt(np.square(points).sum(1).mean())
