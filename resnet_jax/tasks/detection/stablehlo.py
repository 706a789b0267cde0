"""Serialises a detector for other programs, with its weights and its input normalisation."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from resnet_jax.data.sizes import pair
from resnet_jax.tasks.detection import inference
from resnet_jax.tasks.detection.detector import Detector
from resnet_jax.tasks.network import normalized


def stablehlo(network: Detector, flags: Mapping[str, Any]) -> bytearray:
    """The detector as a serialised `jax.export.Exported` with a symbolic batch size.

    Args:
      network: see `Detector`.
      flags: 'image_size', the side of its canvas or (height, width); None: that of its config, the
        first one if there are several.

    Returns:
      What `jax.export.deserialize` takes. Its function is (uint8 [b, H, W, C], the sizes of the
      images on their canvases, int32 [b, 2]) -> the fields of `rcnn.Detections` in a dict, with
      boxes in pixels of the canvas; masks are left out where there are none.
    """
    variables, normalization = dict(network.variables), dict(network.normalization)
    height, width = pair(flags['image_size'] or network.canvas.sizes[0])
    batch, *image = export.symbolic_shape(f'b, {height}, {width}, {network.config.data.channels}')

    def detect(images, sizes):
        images = inference.blanked(normalized(images, normalization), sizes)
        found = inference.detect(network.model, variables, images, sizes)._asdict()
        return {name: part for name, part in found.items() if part is not None}

    return export.export(jax.jit(detect), platforms=('cpu', 'cuda', 'tpu'))(
        jax.ShapeDtypeStruct((batch, *image), np.uint8),
        jax.ShapeDtypeStruct((batch, 2), np.int32)).serialize()
