"""Parameters that older versions called otherwise; their checkpoints are read all the same."""

import re
from collections.abc import Mapping
from typing import Any

# In paths such as 'params/stage1/block1/conv1/kernel': pattern, replacement.
RENAMED = (
    (re.compile(r'(?:^|(?<=/))(stage\d+)/first(?=/)'), r'\1/block1'),
    (re.compile(r'(?:^|(?<=/))(stage\d+)/rest(?=/)'), r'\1/blocks'),
)


def current_path(path: str) -> str:
    """The path that an array of a checkpoint has today."""
    for pattern, new in RENAMED:
        path = pattern.sub(new, path)
    return path


def current_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of nested dicts, its leaves under the paths that they have today."""
    renamed: dict[str, Any] = {}

    def place(branch, before):
        for name, child in branch.items():
            path = (*before, name)
            if isinstance(child, Mapping) and child:
                place(child, path)
                continue
            *parents, last = current_path('/'.join(path)).split('/')
            parent = renamed
            for key in parents:
                parent = parent.setdefault(key, {})
            parent[last] = child

    place(tree, ())
    return renamed
