"""A provider of nodes for Ray's autoscaler: processes of this machine, which may have memory by the words of their type."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Ray's own, which takes a type's memory for a resource of the user's and refuses it; nodes have what is free here."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, Any], labels: Any
    ) -> None:
        """As Ray's."""
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, others, labels)  # type: ignore[no-untyped-call]
