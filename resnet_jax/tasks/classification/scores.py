"""Error, loss and calibration of the predicted probabilities of a whole split."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.tasks.classification.metrics import TOP_K, label_ranks

CHUNK = 4096  # images that are ranked at once
CALIBRATION_BINS = 15


class Scores(NamedTuple):
    """The scores of a set of predictions.

    Attributes:
      loss: mean negative log-probability of the right class.
      top1_error, top5_error: percent.
      calibration_error: expected calibration error, percent.
      class_error: top-1 error of each class, percent, NaN without images: float64 [classes].
      confusion: images by right class (rows) and predicted class: int64 [classes, classes].
      count: images.
    """

    loss: float
    top1_error: float
    top5_error: float
    calibration_error: float
    class_error: np.ndarray
    confusion: np.ndarray
    count: int  # type: ignore[assignment]  # a tuple has a method of this name

    def report(self) -> dict[str, float]:
        """The numbers under their TensorBoard tags."""
        return {f'eval/{name}': getattr(self, name) for name in (
            'loss', 'top1_error', 'top5_error', 'calibration_error', 'count')}


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> Scores:
    """Computes the scores of predictions.

    Args:
      log_probabilities: float32 [N, classes], N at least 1.
      labels: int32 [N].
    """
    count, classes = log_probabilities.shape
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
    rank = jax.jit(label_ranks)
    ranks = np.concatenate([np.asarray(rank(log_probabilities[c], labels[c])) for c in chunks])
    predicted = log_probabilities.argmax(1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    wrong = np.bincount(labels, ranks >= 1, classes)
    with np.errstate(invalid='ignore'):
        class_error = 100 * wrong / np.bincount(labels, minlength=classes)
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    confidence = np.exp(log_probabilities.max(1).astype(np.float64))
    return Scores(
        loss=float(-own.astype(np.float64).mean()),
        top1_error=100 * float((ranks >= 1).mean()),
        top5_error=100 * float((ranks >= TOP_K).mean()),
        calibration_error=100 * calibration_error(confidence, ranks == 0),
        class_error=class_error, confusion=confusion, count=count)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (C. Guo et al., "On Calibration", 2017, eq. 3), from 0 to 1.

    Args:
      confidence: the highest probability, float64 [N].
      correct: whether its class is right, bool [N].

    Returns:
      The mean gap between confidence and accuracy over 15 bins of confidence of one width, weighted
      by their images.
    """
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - correct, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Tab-separated: a row for each right class, a column for each predicted one."""
    lines = ['\t'.join(['right class', *classes])]
    lines += ['\t'.join([name, *map(str, row)])
              for name, row in zip(classes, confusion, strict=True)]
    return '\n'.join(lines) + '\n'
