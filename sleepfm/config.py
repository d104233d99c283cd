"""Configuration: YAML files with ``extends``, ``key=value`` overrides, validated by pydantic.

A file may name others, relative to itself, under ``extends``; later files and the file itself win key by
key. An override is a dotted path (``train.steps=100``) whose value is read as YAML. A key that the schema
does not know is an error that names the nearest key it does know.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError

from sleepfm.errors import ConfigError
from sleepfm.paths import config_root, find_config

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Config(BaseModel):
    """Base of every configuration section: unknown keys are refused, values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=BaseModel)


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
        content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read configuration ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, found a {type(content).__name__}")
    bases = content.pop("extends", [])
    merged: dict[Any, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, _read(_base(path, base), (*seen, path)))
    return {str(key): value for key, value in merge(merged, content).items()}


def _base(path: Path, name: str) -> Path:
    """The file that ``path`` extends: beside it, or else the one of that name that comes with the package."""
    beside = path.parent / name
    shipped = [] if beside.exists() else list(config_root().glob(f"*/{Path(name).name}"))
    return shipped[0] if len(shipped) == 1 and Path(name).name == name else beside


def merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """``below`` with ``above`` on it, key by key; whatever is no mapping is replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with every ``dotted.key=value`` of ``overrides`` applied.

    Raises:
        ConfigError: an override without ``=``, with a malformed key or with a value that is no YAML.
    """
    overrides = list(overrides)
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError(f"override {item!r}: expected key=value, for example train.steps=100")
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
        raise ConfigError(f"override {item!r}: not valid YAML ({reason}); {example}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"overrides {overrides}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def validate(schema: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    """``values`` as a ``schema``; ``origin`` names the file in errors.

    Raises:
        ConfigError: listing every wrong key with what was expected and the nearest known name.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(schema, item) for item in error.errors())) from error


def load_config(schema: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read ``path`` (a file, or the name of a shipped one), apply ``overrides`` and validate as ``schema``.

    Raises:
        ConfigError: see :func:`read_yaml`, :func:`apply_overrides` and :func:`validate`.
    """
    return validate(schema, apply_overrides(read_yaml(find_config(path)), overrides), str(path))


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
        return f"key {where!r}: {item['msg']} (found {item['input']!r})" if where else str(item["msg"])
    known = _known_keys(schema)
    near = difflib.get_close_matches(where, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        where.rsplit(".", 1)[-1], known, n=1, cutoff=0.5
    )
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {where!r}; {hint}"


def _known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys.extend(_known_keys(candidate, f"{prefix}{name}."))
    return keys
