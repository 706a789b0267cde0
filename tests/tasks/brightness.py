"""A task of somebody else's: a network predicts how bright an image is on average."""

import numpy as np

from resnet_jax.data.transforms import EvalTransform
from resnet_jax.tasks import Answer, Headline, Predictor, Task
from resnet_jax.tasks.network import Network


class Photometer(Network):
    """A trained network."""

    def predict(self, images):
        """Images, see `Network` -> brightness from 0 to 1, float32 [N]."""
        return self.outputs(images)[..., 0]


def _measured(batch, outputs):
    predicted, brightness = outputs[:, 0], batch['brightness']
    losses = (predicted - brightness) ** 2
    metrics = {'loss': (losses * batch['mask']).sum(), 'count': batch['mask'].sum()}
    return metrics, {'predicted': predicted, 'brightness': brightness}


def loss(model, variables, batch, key, config):
    del key, config
    outputs, updates = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'])
    metrics, _ = _measured(batch, outputs)
    return metrics['loss'], updates['batch_stats'], metrics


def evaluate(model, variables, batch, config):
    del config
    return _measured(batch, model.apply(variables, batch['image'], train=False))


def train_report(metrics):
    return {'loss': float(metrics['loss'] / metrics['count'])}


def report(metrics, outputs, config):
    """R squared is no sum over images: it needs the mean brightness of all of them."""
    del config
    predicted, brightness = (np.float64(outputs[name]) for name in ('predicted', 'brightness'))
    unexplained = ((predicted - brightness) ** 2).sum()
    return {**train_report(metrics), 'count': len(brightness),
            'r2': float(1 - unexplained / ((brightness - brightness.mean()) ** 2).sum())}


def predictor(networks, flags):
    del flags
    size = networks[0].config.data.image_size

    def load(item):
        return EvalTransform(size).pixels(item)[:, :, :1]

    def answer(images):
        return [Answer({'brightness': float(value)}, [f'brightness {value:.3f}'])
                for value in networks[0].predict(images)]

    return Predictor(load, answer)


TASK = Task(
    loss=loss, evaluate=evaluate, train_report=train_report, report=report,
    headline=Headline('eval/r2', 'R squared', lower_is_better=False),
    line=lambda values: '  '.join(f'{name} {values[name]:.4f}' for name in ('loss', 'r2')
                                  if name in values),
    watched=lambda metrics: metrics['loss'] / metrics['count'],
    load=lambda weights, path: Photometer(
        weights.config, weights.variables, weights.normalization),
    predictor=predictor,
)
