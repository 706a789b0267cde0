"""Linear probes: how well a linear classifier can predict the classes from a representation.

G. Alain and Y. Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

import numpy as np

POSITIONS = 8  # a feature map is averaged to at most this many positions per side
COMPONENTS = 100


def coarse(maps: np.ndarray) -> np.ndarray:
    """[N, H, W, C] averaged over equal windows to at most 8 x 8 positions, and flattened.

    Where H is no multiple of the window the last window is smaller.
    """
    for axis in (1, 2):
        size = maps.shape[axis]
        window = -(-size // POSITIONS)
        starts = np.arange(0, size, window)
        counts = np.diff([*starts, size]).reshape([-1 if i == axis else 1 for i in range(4)])
        maps = np.add.reduceat(maps, starts, axis) / counts.astype(np.float32)
    return maps.reshape(len(maps), -1)


def accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray,
             test_labels: np.ndarray) -> float:
    """Accuracy in percent of logistic regression on images that it was not fitted to.

    It is fitted to the first 100 principal components of the training features, scaled to a mean
    variance of 1, with scikit-learn's default penalty: features of any number and scale are so
    treated alike.

    Args:
      train: [M, D].
      train_labels: int [M].
      test: [N, D].
      test_labels: int [N].
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # The matrices are small: a second thread waits more than it works.
    with threadpool_limits(1):
        pca = PCA(min(COMPONENTS, *train.shape), iterated_power=2, random_state=0).fit(train)
        scale = np.sqrt(pca.explained_variance_.mean()) or 1.0
        probe = LogisticRegression(max_iter=500).fit(pca.transform(train) / scale, train_labels)
        return 100 * float(probe.score(pca.transform(test) / scale, test_labels))
