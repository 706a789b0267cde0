"""A network is a backbone and a head: feature maps by name, and single stages on anything."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models.backbone import average
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.resnet import ResNet, ResNetBackbone
from resnet_jax.models.vgg import VGG
from tests import jitted

NARROW = dict(width=4, unroll=False)


def init(model, size=32):
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    return jax.jit(lambda: model.init(jax.random.key(0), images, train=False))(), images


class Detector(nn.Module):
    """Shares the stages up to the third, and applies the fourth to regions, as Faster R-CNN does.

    Its region is the whole feature map.
    """

    backbone: ResNetBackbone

    def setup(self):
        nn.share_scope(self, self.backbone)

    def __call__(self, images):
        regions = self.backbone.features(images, train=False, upto='stage3')['stage3']
        return average(self.backbone.stage4(regions, train=False))


def test_the_last_stage_on_regions_with_the_parameters_of_the_classifier():
    fields = dict(block=BottleneckBlock, stage_sizes=(1, 1, 1, 1), **NARROW)
    classifier, detector = ResNet(num_classes=3, **fields), Detector(ResNetBackbone(**fields))
    variables, images = init(classifier)
    own = jax.eval_shape(lambda: detector.init(jax.random.key(0), images))
    without_head = {**variables, 'params': {
        name: leaf for name, leaf in variables['params'].items() if name != 'head'}}
    assert jax.tree.structure(own) == jax.tree.structure(without_head)

    head = variables['params']['head']
    pooled = jax.jit(detector.apply)(without_head, images)
    logits = jax.jit(lambda *args: classifier.apply(*args, train=False))(variables, images)
    np.testing.assert_allclose(pooled @ head['kernel'] + head['bias'], logits, rtol=1e-5)


def test_feature_maps_are_named_halved_and_end_where_they_are_told():
    model = ResNet(BasicBlock, (1, 2, 1), num_classes=3, **NARROW)
    variables, images = init(model)

    def shapes(**upto):
        return {name: leaf.shape for name, leaf in jax.eval_shape(lambda: model.apply(
            variables, images, train=False, method='features', **upto)).items()}

    assert shapes() == {'stem': (2, 8, 8, 4), 'stage1': (2, 8, 8, 4), 'stage2': (2, 4, 4, 8),
                        'stage3': (2, 2, 2, 16)}
    assert set(shapes(upto='stage1')) == {'stem', 'stage1'}
    with pytest.raises(ValueError, match='upto must be one of stem, stage1, stage2, stage3, got'):
        shapes(upto='stage4')
    program = jax.make_jaxpr(lambda: model.apply(
        variables, images, train=False, method='features', upto='stem'))()
    assert str(program).count('conv_general_dilated[') == 1  # nothing after it is computed


def test_the_feature_maps_of_vgg_are_taken_behind_its_pooling():
    model = VGG((1,) * 5, width=1, num_classes=3)
    images = jnp.zeros((1, 224, 256, 3))
    shapes = {name: leaf.shape for name, leaf in jax.eval_shape(lambda: model.init_with_output(
        jax.random.key(0), images, train=False, method='features')[0]).items()}
    assert shapes == {'stage1': (1, 112, 128, 1), 'stage2': (1, 56, 64, 2),
                      'stage3': (1, 28, 32, 4), 'stage4': (1, 14, 16, 8), 'stage5': (1, 7, 8, 8),
                      'dense': (1, 1, 2, 64)}
    # Only the dense layers need 224 pixels.
    small = jax.eval_shape(lambda: model.init_with_output(
        jax.random.key(0), images[:, :32, :32], train=False, upto='stage5', method='features')[0])
    assert small['stage5'].shape == (1, 1, 1, 8)


@pytest.mark.parametrize('train', [False, True])
def test_frozen_statistics_are_used_and_kept_in_training_too(train):
    model = ResNet(BasicBlock, (1,), num_classes=3, bn_frozen=True, **NARROW)
    variables, images = init(model)
    logits, updates = jitted.apply(model, variables, images, train=train, mutable='batch_stats')
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])
    np.testing.assert_array_equal(logits, jitted.apply(
        model.clone(bn_frozen=False), variables, images, train=False))
