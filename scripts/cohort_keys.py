"""Print docs/cohort-keys.md, the reference of a cohort file's keys, from the schema that reads such files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sleepfm.config import read_yaml
from sleepfm.constants import CHANNELS
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.cohort import PLACEHOLDERS, Channel, Cohort

HEAD = """# Keys of a cohort file

A cohort file says which signals of a study's or laboratory's recordings are which channels, where scorings are, and which part of
a file's name or path is the person. [Own recordings](own-recordings.md) shows how to write one. This page lists every key; it is
generated (`python scripts/cohort_keys.py > docs/cohort-keys.md`).

`extends` names other files from which missing keys are taken (`extends: generic.yaml`). `generic.yaml` has rules that recognise
electrodes and references in labels; `defaults.yaml` has only filters, least rates and quality limits. Every shipped file extends
one of them. Mappings are merged key by key; a list, such as the rules of a channel, is replaced as a whole. A wrong key or value
is an error that names its line and the allowed values. "Must be given" means: here or in an extended file. Always give a `name`
of your own; without one, recordings are stored under that of the extended file.

Every recording is mapped to these canonical channels:
{channels}.

## Placeholders in `scoring.files`

| placeholder | is replaced by |
|---|---|
{placeholders}

If a name itself contains braces, write them twice: `{{{{` and `}}}}`.
"""


def main() -> None:
    """Print the page."""
    placeholders = "\n".join(f"| `{{{name}}}` | {meaning} |" for name, meaning in PLACEHOLDERS.items())
    channels = ", ".join(f"`{name}`" for name in CHANNELS)
    print(HEAD.format(channels=channels, placeholders=placeholders), end="")
    given = read_yaml(config_root() / "cohorts" / "defaults.yaml")
    for path, section in sections(Cohort):
        print(f"\n## {f'`{path}`' if path else 'The file'}\n\n{' '.join((section.__doc__ or '').split())}\n")
        print("| key | what it says | values | default | example |\n|---|---|---|---|---|")
        for name, field in section.model_fields.items():
            default = "in `defaults.yaml`" if not path and name in given else told_default(field)
            cells = (f"`{name}`", field.description or "", told_type(field.annotation), default, example(name, field))
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")


def sections(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """``schema`` and every section below it, each with the path of its keys."""
    yield path, schema
    for name, field in schema.model_fields.items():
        for behind, section in _inside(field.annotation):
            yield from sections(section, f"{path}.{name}{behind}".lstrip("."))


def _inside(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    elif get_origin(annotation) is dict:
        key, value = get_args(annotation)
        name = "CHANNEL" if key is Channel else "NAME"
        yield from ((f".{name}{behind}", section) for behind, section in _inside(value))
    elif get_origin(annotation) is tuple:
        yield from (("[]" + behind, section) for behind, section in _inside(get_args(annotation)[0]))


def told_type(annotation: Any) -> str:
    """``annotation`` in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Channel:
        return "channel"
    if origin is Annotated:
        return told_type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return told_type(next(part for part in inner if part is not NoneType))
    if origin is tuple:
        return f"list of: {told_type(inner[0])}"
    if origin is dict:
        return f"{told_type(inner[0])}: {told_type(inner[1])}"
    if issubclass(annotation, BaseModel):
        return "section below"
    return {str: "text", bool: "true, false", int: "whole number", float: "number"}[annotation]


def told_default(field: FieldInfo) -> str:
    """What counts without the key."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and value):
        return f"`{json.dumps(value) if not isinstance(value, str) else value}`"
    return "none"


def example(name: str, field: FieldInfo) -> str:
    """The key with a value, as a line of YAML; empty for a section."""
    if not field.examples:
        return ""
    line = yaml.safe_dump({name: field.examples[0]}, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{line.strip()[1:-1]}`"


if __name__ == "__main__":
    main()
