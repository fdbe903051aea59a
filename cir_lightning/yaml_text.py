"""YAML that is read strictly: a key that comes twice, of which PyYAML silently takes the last, is refused."""

from __future__ import annotations

from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} comes twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """The content of a YAML text; nothing in it is run.

    Raises:
        yaml.YAMLError: the YAML is broken, or has a key twice in one mapping.
    """
    return yaml.load(text, _Strict)
