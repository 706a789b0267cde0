"""Global context: the whole image is one more region, which is normalised with the others."""

import jax
import jax.numpy as jnp

from configs import scenes_r20
from resnet_jax.models import rcnn


def test_a_virtual_batch_holds_the_regions_of_its_images_and_the_images():
    config = scenes_r20.get_config()
    for context, regions in ((False, 32), (True, 33)):
        config.model.detector.context = context
        model = rcnn.create(config)
        assert model.stage_batch(len(model.stage_sizes) - 1) == 8 * regions
        variables = jax.eval_shape(lambda model=model: model.init(
            jax.random.key(0), jnp.zeros((1, 64, 64, 1)), train=False))
        assert variables['params']['box']['score']['kernel'].shape == (64 * (1 + context), 11)
        shapes = jax.eval_shape(
            lambda variables, features, model=model: model.apply(
                variables, features, jnp.zeros((16, 32, 4)), jnp.full((16, 2), 64), train=True,
                method='heads', mutable=['batch_stats']),
            variables, jax.ShapeDtypeStruct((16, 32, 32, 32), jnp.float32))
        assert [x.shape for x in shapes[0]] == [(16, 32, 11), (16, 32, 10, 4)]
