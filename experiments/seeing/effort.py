"""How much is computed for the pictures of a network, in a file that imports no libraries."""

from typing import NamedTuple


class Effort(NamedTuple):
    """How much is computed for the pictures of one network.

    Attributes:
      side: pixels of the images that maximise a channel; None: those of the network's images.
      steps: of their optimisation.
      starts: images of noise that each is optimised from; the best counts, as a channel that the
        first one leaves silent gives no gradient.
      channels: of each stage, that they are shown for.
      gradients: per image, at most; see `integrated_gradients`.
    """

    side: int | None = None
    steps: int = 128
    starts: int = 4
    channels: int = 10
    gradients: int = 4096


DEFAULT = Effort()
