"""Tasks: what networks are trained for. `config.task` names one; see `Task`."""

from resnet_jax.tasks.task import Answer, Headline, Part, Predictor, Report, Task, get

__all__ = ['Answer', 'Headline', 'Part', 'Predictor', 'Report', 'Task', 'get']
