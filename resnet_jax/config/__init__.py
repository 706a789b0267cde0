"""The config of a run: its fields, their check, and the configs stored beside checkpoints."""

from resnet_jax.config.checks import check, check_ranges
from resnet_jax.config.derived import derived_table
from resnet_jax.config.fields import (
    BEFORE,
    EXECUTION_FIELDS,
    LOCAL_FIELDS,
    MEANINGLESS_WITHOUT,
    RENAMED,
    default,
)
from resnet_jax.config.modules import find_module, is_module
from resnet_jax.config.overrides import changed, problem_of_name
from resnet_jax.config.stored import common_fields, differences, from_stored, given, leaves, upgrade

__all__ = ['BEFORE', 'EXECUTION_FIELDS', 'LOCAL_FIELDS', 'MEANINGLESS_WITHOUT', 'RENAMED',
           'changed', 'check', 'check_ranges', 'common_fields', 'default', 'derived_table',
           'differences', 'find_module', 'from_stored', 'given', 'is_module', 'leaves',
           'problem_of_name', 'upgrade']
