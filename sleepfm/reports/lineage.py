"""The graph from shards to models, drawn as SVG text that stands inside an HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sleepfm.tasks import TASKS
from sleepfm.wording import counted

BOX_WIDTH, LINE_HEIGHT, GAP_X, GAP_Y, MARGIN = 236, 15, 70, 18, 10
# Tags that name the data sets of a mixture.
_SOURCE = "source."


@dataclass(frozen=True)
class Node:
    """A data set or a model version. ``kind`` is ``data``, ``pretrained`` or ``downstream``; ``lines`` stand
    below the title.
    """

    key: str
    kind: str
    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Nodes and the edges (parent key, child key) between them; edges must not form a cycle."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


def from_registry(models: Iterable[tuple[str, str]], store: str | None = None) -> Lineage:
    """The graph above ``models`` (name, version): their ancestors and the data sets that they and these were made from.

    Raises:
        RegistryError: no such version.
    """
    from sleepfm.registry.lineage import lineage

    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], None] = {}
    downstream = {task.registered_name for task in TASKS.values()}

    def add(entry: dict[str, Any]) -> str:
        key, tags = f"{entry['name']}:{entry['version']}", entry["tags"]
        kind = "downstream" if entry["name"] in downstream else "pretrained"
        facts = (("weights", "sha256"), ("commit", "git_commit"))
        lines = tuple(f"{word} {tags[tag][:12]}" for word, tag in facts if tag in tags) or ("nothing known of it",)
        parents = [add(parent) for parent in entry["parents"]]
        digest = tags.get("dataset_digest")
        # Where every parent was trained on the same data set, the edges from them say so.
        if digest and ({parent["tags"].get("dataset_digest") for parent in entry["parents"]} != {digest}):
            sources = [f"{key.removeprefix(_SOURCE)} {tags[key][:12]}" for key in sorted(tags) if key.startswith(_SOURCE)]
            told = tuple(sources) or (f"digest {digest[:12]}",)
            nodes.setdefault(digest, Node(digest, "data", "mixture" if sources else "shards", told))
            parents.append(digest)
        title = f"{entry['name']} v{entry['version']}" if entry["version"] else Path(entry["name"]).name
        nodes.setdefault(key, Node(key, kind, title, lines))
        edges.update(dict.fromkeys((parent, key) for parent in parents))
        return key

    for name, version in models:
        add(lineage(name, version, store))
    return Lineage(tuple(nodes.values()), tuple(edges))


def to_svg(lineage: Lineage) -> str:
    """The graph as an ``<svg>`` element: each node right of all its parents, columns centred."""
    column = _columns(lineage)
    n_columns = max(column.values(), default=0) + 1
    stacks = [[node for node in lineage.nodes if column[node.key] == c] for c in range(n_columns)]
    heights = [sum(_height(node) for node in stack) + GAP_Y * (len(stack) - 1) for stack in stacks]
    tall = max(heights, default=0)
    place: dict[str, tuple[float, float]] = {}
    for c, (stack, height) in enumerate(zip(stacks, heights, strict=True)):
        y = MARGIN + (tall - height) / 2
        for node in stack:
            place[node.key] = (MARGIN + c * (BOX_WIDTH + GAP_X), y)
            y += _height(node) + GAP_Y
    nodes = {node.key: node for node in lineage.nodes}
    width, height = 2 * MARGIN + n_columns * BOX_WIDTH + (n_columns - 1) * GAP_X, tall + 2 * MARGIN
    told = f"Lineage of {len(lineage.nodes)} data sets and models, {counted(len(lineage.edges), 'step')} from shards to models."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="100%" '
        f'style="max-width:{width}px" role="img" aria-label="{told}">'
    ]
    parts += [_edge(place[a], nodes[a], place[b], nodes[b]) for a, b in lineage.edges]
    parts += [_box(node, *place[node.key]) for node in lineage.nodes]
    return "\n".join([*parts, "</svg>"])


def as_list(lineage: Lineage) -> list[tuple[Node, tuple[str, ...]]]:
    """The graph for a narrow page: each node after all its parents, with their titles."""
    column, titles = _columns(lineage), {node.key: node.title for node in lineage.nodes}
    parents = {node.key: tuple(titles[a] for a, b in lineage.edges if b == node.key) for node in lineage.nodes}
    return [(node, parents[node.key]) for node in sorted(lineage.nodes, key=lambda node: column[node.key])]


def _columns(lineage: Lineage) -> dict[str, int]:
    """Column of each node: one right of its rightmost parent."""
    parents: dict[str, list[str]] = {node.key: [] for node in lineage.nodes}
    for parent, child in lineage.edges:
        parents[child].append(parent)
    column: dict[str, int] = {}
    while len(column) < len(parents):
        ready = [k for k, above in parents.items() if k not in column and all(p in column for p in above)]
        if not ready:
            raise ValueError(f"lineage has a cycle among {sorted(set(parents) - set(column))}")
        for key in ready:
            column[key] = max((column[p] + 1 for p in parents[key]), default=0)
    return column


def _height(node: Node) -> int:
    return 14 + LINE_HEIGHT * (1 + len(node.lines))


def _edge(start: tuple[float, float], a: Node, end: tuple[float, float], b: Node) -> str:
    x0, y0 = start[0] + BOX_WIDTH, start[1] + _height(a) / 2
    x1, y1 = end[0], end[1] + _height(b) / 2
    bend = GAP_X * 0.6
    path = f"M{x0:g},{y0:g} C{x0 + bend:g},{y0:g} {x1 - bend:g},{y1:g} {x1 - 6:g},{y1:g}"
    head = f"M{x1:g},{y1:g} l-7,-3.5 v7 z"
    return f'<path d="{path}" class="edge"/><path d="{head}" class="tip"/>'


def _box(node: Node, x: float, y: float) -> str:
    lines: Sequence[str] = node.lines
    texts = [f'<text x="{x + 10:g}" y="{y + 20:g}" class="strong">{escape(node.title)}</text>']
    texts += [
        f'<text x="{x + 10:g}" y="{y + 20 + LINE_HEIGHT * (i + 1):g}" class="small">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{_height(node)}" rx="6" '
        f'class="node node-{node.kind}"/>' + "".join(texts)
    )
