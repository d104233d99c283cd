"""Configuration: YAML files with ``extends``, ``key=value`` overrides, validated by pydantic.

A file may name others, relative to itself, under ``extends``; later files and the file itself win key by
key. An override is a dotted path (``train.steps=100``) whose value is read as YAML. A key that the schema
does not know is an error that names the nearest key it does know.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError

from sleepfm.errors import ConfigError
from sleepfm.paths import config_root, find_config, shipped_alike, shipped_config

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Characters of a wrong value that an error repeats.
_LONGEST_VALUE = 60
_NAMED = 4
# What pydantic says at length, by its name of the fault.
_EXPECTED = {
    "missing": "missing",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected a text",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
}
# Where overrides come from, in errors.
COMMAND_LINE = "command line"
_PROBE, _FINETUNE, _OF_TASKS = "`sleepfm probe`", "`sleepfm finetune`", "`sleepfm probe`, `finetune` or `recordings`"
# Keys that files for other commands do not have, by what reads the files that have them.
KEYS_OF_COMMANDS = {
    "`sleepfm pretrain`": ("model", "monitor", "encoders"),
    _FINETUNE: (
        "tune",
        "context",
        "sequence",
        "layer_decay",
        "modality_dropout",
        "channel_dropout",
        "gain",
        "filter_db",
    ),
    "`sleepfm recordings`": ("pool", "values"),
    _PROBE: ("grid", "curve"),
    _OF_TASKS: ("task", "evaluate"),
    "`sleepfm build`": ("recordings_per_shard", "segment_epochs", "event_rule", "require"),
    "`sleepfm synth`": ("montage", "amplifier", "insomnia", "medication", "gains"),
    "`make demo` or `make weights`": ("unimodal",),
    "the option --cohort": ("recognise", "identity", "minimum_rate", "filters"),
}


class _Loader(_LOADER):
    """YAML in which a key stands once: of two that are the same, YAML's own loader takes the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if name in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"key {name!r} is already in line {lines[name]}, and one would replace the other; merge the two",
                    problem_mark=key.start_mark,
                )
            lines[name] = line
        return super().construct_mapping(node, deep=deep)


class Config(BaseModel):
    """Base of every configuration section: unknown keys are refused, values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    example: ClassVar[str] = ""
    """A shipped file of this kind, which an error names where another kind is given."""
    begin_with: ClassVar[str] = ""
    """A shipped file that one's own extends, where that is not the example."""


ConfigT = TypeVar("ConfigT", bound=BaseModel)
# Keys and places in lists from the root of a configuration to a value.
Location = tuple[str | int, ...]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path`` with everything it ``extends`` merged below it: files beside it, or shipped ones by their names.

    Raises:
        ConfigError: missing file, invalid YAML, not a mapping, or a cycle of ``extends``.
    """
    return _read(Path(path), ())


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not written in UTF-8; save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({_place_and_reason(error, text)})") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, found a {type(content).__name__}")
    merged: dict[Any, Any] = {}
    for base in _bases(content):
        merged = merge(merged, _read(_base(path, base), (*seen, path)))
    content.pop("extends", None)
    return {str(key): value for key, value in merge(merged, content).items()}


def _place_and_reason(error: yaml.YAMLError, text: str) -> str:
    """Where ``text`` is no YAML, and why."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        # A character that YAML does not allow has no mark.
        return str(error).splitlines()[0]
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    if "\t" in line[: len(line) - len(line.lstrip())]:
        problem = "the line is indented with a tab; indent with spaces"
    return f"line {mark.line + 1}: {problem}"


def _bases(content: dict[Any, Any]) -> list[str]:
    """What a file with this ``content`` extends, as it names it."""
    bases = content.get("extends") or []
    return [str(base) for base in bases] if isinstance(bases, list) else [str(bases)]


def _base(path: Path, name: str) -> Path:
    """The file that ``path`` extends: beside it, or else a shipped one, named as for a command or by its own name alone.

    Raises:
        ConfigError: there is none.
    """
    beside = path.parent / name
    if beside.exists():
        return beside
    alike = shipped_alike(name)
    found = shipped_config(name) or (config_root() / alike[0] if [Path(one).name for one in alike] == [name] else None)
    if found is None:
        hint = f"did you mean {' or '.join(alike)}?" if alike else "shipped ones are named as in pretrain/eeg-tiny.yaml"
        raise ConfigError(f"{path}: extends {name!r}, which is no file beside it and no shipped one; {hint}")
    return found


def merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """``below`` with ``above`` on it, key by key; whatever is no mapping is replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def apply_overrides(values: dict[str, Any], overrides: Iterable[str], origin: str = "configuration") -> dict[str, Any]:
    """``values`` with every ``dotted.key=value`` of ``overrides`` applied; ``origin`` names their file in errors.

    Raises:
        ConfigError: an override without ``=``, without a value, with a malformed key or with a value that is no YAML, or a
            reference (``${key}``) to what is not there.
    """
    overrides = list(overrides)
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError(f"{COMMAND_LINE}: override {item!r}: expected key=value, for example train.steps=100")
        key, _, value = item.partition("=")
        if not value.strip():
            raise ConfigError(f"{COMMAND_LINE}: {key} is empty; write its value behind the =, or null for none")
    # OmegaConf takes a tenth of a second and more for a cohort, of which a process may read twenty.
    if not overrides and "${" not in repr(values):
        return values
    try:
        changes = OmegaConf.create()
        for item in overrides:
            changes.merge_with_dotlist([item])
        merged = OmegaConf.merge(OmegaConf.create(values), changes)
        plain = OmegaConf.to_container(merged, resolve=True)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or error
        example = "write the value as in a file, such as {key: value} or [1, 2]"
        raise ConfigError(f"{COMMAND_LINE}: override {item!r}: not valid YAML ({reason}); {example}") from error
    except OmegaConfBaseException as error:
        if overrides:
            apply_overrides(values, (), origin)  # where that fails too, the file is at fault
            origin = f"{COMMAND_LINE}: overrides {', '.join(overrides)}"
        raise ConfigError(f"{origin}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def validate(
    schema: type[ConfigT],
    values: dict[str, Any],
    origin: str,
    place: Callable[[Any], tuple[str, str]] | None = None,
) -> ConfigT:
    """``values`` as a ``schema``; ``origin`` names the file in errors.

    Args:
        place: what a fault (of pydantic) is to be looked for in, in the place of ``origin``, and the line there, or an empty one.

    Raises:
        ConfigError: listing every wrong key with its line, what was expected and the nearest known name.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        told: dict[str, list[str]] = {}
        for item in _faults(error):
            source, line = place(item) if place else (origin, "")
            told.setdefault(source, []).append(f"{line}: {_explain(schema, item)}" if line else _explain(schema, item))
        raise ConfigError("; ".join(f"{source}: {'; '.join(faults)}" for source, faults in told.items())) from error


def _faults(error: ValidationError) -> Iterator[Any]:
    for item in error.errors():
        # What pydantic says of a key itself.
        item["loc"] = tuple(part for part in item["loc"] if part != "[key]")
        yield item


def load_config(schema: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read ``path`` (a file, or the name of a shipped one), apply ``overrides`` and validate as ``schema``.

    Raises:
        ConfigError: see :func:`read_yaml`, :func:`apply_overrides` and :func:`validate`. Faults of ``overrides`` are told of the
            command line.
    """
    found = find_config(path)
    if not found.exists():
        if alike := shipped_alike(found):
            raise ConfigError(f"{path}: no such file; did you mean {' or '.join(alike)}?")
        raise ConfigError(f"{path}: no such file, and none is shipped under this name; {_instead(schema)}")
    stated = read_yaml(found)
    values = apply_overrides(stated, overrides, str(path))
    _check_reader(schema, path, stated, values)
    given = [tuple(item.split("=", 1)[0].split(".")) for item in overrides]

    def place(fault: Any) -> tuple[str, str]:
        names = _names(values, fault["loc"])
        if any(names[: len(key)] == key for key in given):
            return COMMAND_LINE, ""
        # Of a section: the file may say what does not go with the command line.
        inside = sorted({".".join(key) for key in given if key[: len(names)] == names})
        if inside and not _has(stated, names):
            return COMMAND_LINE, ""
        if inside and not _stands_alone(schema, stated, fault):
            return f"{path} with {', '.join(inside)} of the {COMMAND_LINE}", ""
        return str(path), line_of(found, fault["loc"])

    try:
        return validate(schema, values, str(path), place)
    except ConfigError as error:
        faults = list(_faults(error.__cause__)) if isinstance(error.__cause__, ValidationError) else []
        missing = [".".join(map(str, item["loc"])) for item in faults if item["type"] == "missing"]
        if told := _told_of_missing(schema, path, found, stated, missing, str(error)):
            raise ConfigError(told) from error
        raise


def _check_reader(schema: type[BaseModel], path: str | Path, stated: dict[str, Any], values: dict[str, Any]) -> None:
    """Raises :class:`ConfigError` where the file at ``path``, which states these values, is for another command.

    ``values`` are with those of the command line, which can make a fine-tune of the file of a probe.
    """
    fields = schema.model_fields
    for reader, keys in KEYS_OF_COMMANDS.items():
        told = [key for key in keys if key in stated and key not in fields]
        why = f"it has the key{'s' if len(told) > 1 else ''} {', '.join(told)}" if told else ""
        other = _instead(schema)
        if reader == _OF_TASKS and _is_of_a_probe(fields, stated, values):
            reader, why = _PROBE, "it has the key head, but neither tune nor context"
            other += ", or state tune" if "tune" in fields else ""
        if why:
            raise ConfigError(f"{path}: is a configuration for {reader} ({why}); {other}")


def _is_of_a_probe(fields: Collection[str], stated: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether a file is for a probe, and the command, whose configuration has these ``fields``, is another one."""
    tuned = (*KEYS_OF_COMMANDS[_FINETUNE], "events")
    return "head" in stated and ("head" not in fields or "tune" in fields) and not any(key in values for key in tuned)


def _instead(schema: type[BaseModel]) -> str:
    example = str(getattr(schema, "example", ""))
    return f"give one for this command{f', for example {example}' if example else ''}"


def _told_of_missing(
    schema: type[BaseModel], path: str | Path, found: Path, stated: dict[str, Any], missing: list[str], told: str
) -> str:
    """What to say of the file ``found`` that lacks the keys ``missing``, of which ``told`` is known; empty where that is all."""
    if not missing:
        return ""
    whole = _extended_by(found)
    more = f" and {len(whole) - _NAMED} more" if len(whole) > _NAMED else ""
    names = f"{', '.join(whole[:_NAMED])}{more}"
    if whole and "train" in missing:
        return f"{path}: is a part of configurations ({names}), not one of a command: it has no section train; {_instead(schema)}"
    if whole:
        return f"{told}; this file is a part of other configurations, which give the rest: {names}"
    first = str(getattr(schema, "begin_with", "") or getattr(schema, "example", ""))
    if not first or _stated_bases(found):
        return ""
    what = told if stated else f"{path}: is empty; missing are {', '.join(missing)}"
    return f"{what}; begin it with `extends: {first}`, and write below what is to differ"


def _names(values: Any, location: Location) -> tuple[str, ...]:
    """The keys at ``location``, of a fault in ``values``, without the names of members of unions, which stand nowhere."""
    names = []
    for number, part in enumerate(location):
        listed = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if listed or (isinstance(values, dict) and part in values):
            values = values[part]
        elif number < len(location) - 1:
            continue
        names.append(str(part))
    return tuple(names)


def _has(values: Any, names: tuple[str, ...]) -> bool:
    """Whether a file that states these values has the key at ``names``, of which lists have none."""
    for name in names:
        if not isinstance(values, dict) or name not in values:
            return isinstance(values, list)
        values = values[name]
    return True


def _stands_alone(schema: type[BaseModel], stated: dict[str, Any], fault: Any) -> bool:
    """Whether a file that states these values has the ``fault`` without any override."""
    try:
        schema.model_validate(apply_overrides(stated, ()))
    except ValidationError as error:
        return any((item["loc"], item["msg"]) == (fault["loc"], fault["msg"]) for item in _faults(error))
    except ConfigError:
        pass
    return False


def _extended_by(path: Path) -> list[str]:
    """Names of the files that extend ``path``: those beside it, and of a shipped one those in the other folders."""
    path, root = path.resolve(), config_root().resolve()
    others = root.glob("*/*.yaml") if path.is_relative_to(root) else path.parent.glob("*.yaml")
    return [other.name for other in sorted(others) if path in [(other.parent / base).resolve() for base in _stated_bases(other)]]


def _stated_bases(path: Path) -> list[str]:
    """What the file at ``path`` extends, as it names it; nothing where it is no configuration."""
    try:
        return _bases(yaml.load(path.read_text(encoding="utf-8"), _LOADER) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return []


def line_of(path: Path, location: Location) -> str:
    """Where the key at ``location``, or the nearest one around it, stands: the line, with the file where ``path`` extends it."""
    deepest, place = 0, ""
    for file in _files(path.resolve()):
        depth, line = _depth_and_line(yaml.compose(file.read_text(encoding="utf-8"), _LOADER), location)
        if depth > deepest:
            deepest, place = depth, f"line {line}" if file == path.resolve() else f"{file.name}, line {line}"
    return place


def _depth_and_line(node: Any, location: Location) -> tuple[int, int]:
    """How many parts of ``location`` there are in a file, from its root, and the line of the last of them."""
    depth, line = 0, 0
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            pairs = [(node.value[part], node.value[part])]
        else:
            break
        # Names of the members of a union stand in no file.
        if pairs:
            key, node = pairs[0]
            depth, line = depth + 1, key.start_mark.line + 1
    return depth, line


def _files(path: Path) -> Iterator[Path]:
    """``path`` and what it extends, what wins first."""
    yield path
    for base in reversed(_stated_bases(path)):
        yield from _files(_base(path, base).resolve())


def to_dict(config: BaseModel) -> dict[str, Any]:
    """The resolved configuration as plain JSON types."""
    return config.model_dump(mode="json")


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML text, keys in declaration order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def digest(value: Any) -> str:
    """SHA-256 of ``value`` (a configuration or plain JSON types) in canonical JSON."""
    plain = to_dict(value) if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(schema: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        said = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
        said = _EXPECTED.get(item["type"], said)
        found = "" if isinstance(item["input"], (dict, list, tuple)) else f" (found {_shortened(repr(item['input']))})"
        return f"key {where!r}: {said}{found}" if where else said
    known = _known_keys(schema)
    beside = _keys_at(schema, item["loc"][:-1])
    section, _, name = where.rpartition(".")
    near = [f"{section}.{key}".strip(".") for key in difflib.get_close_matches(name, beside, n=1, cutoff=0.5)]
    if not near and (not section or not beside):
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5) or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(beside or known))}"
    return f"unknown key {where!r}; {hint}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _keys_at(schema: Any, location: Location) -> list[str]:
    """Keys of the section at ``location``; none where that cannot be told from the types."""
    found = [schema]
    for part in location:
        fields = [each.model_fields for each in found if _is_section(each)]
        named = [keys[str(part)].annotation for keys in fields if str(part) in keys]
        # What a mapping or a list holds, and the members of a union.
        found = named or [inner for each in found for inner in getattr(each, "__args__", ())]
    inside = [each for outer in found for each in (outer, *getattr(outer, "__args__", ())) if _is_section(each)]
    return [name for section in inside for name in section.model_fields]


def _is_section(schema: Any) -> bool:
    return isinstance(schema, type) and issubclass(schema, BaseModel)


def _known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys.extend(_known_keys(candidate, f"{prefix}{name}."))
    return keys
