"""Read a config from a name or a YAML file and `--set key=value`, with the types of the dataclasses.

A YAML file has the structure of `train.config.Config`; its `base` names the config that it changes (default: tiny).
An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anchoredit_model.errors import AnchorEditError

from .config import Config, named_config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def load_config(name: str, changes: Sequence[str] = ()) -> Config:
    """Return the config called `name`, or that of the YAML file `name`, with `changes` "key=value".

    Changes are applied together, so that settings that depend on each other may come in any order; of two for one key
    the later one counts.
    """
    config = _from_file(Path(name)) if name.endswith((".yaml", ".yml")) else named_config(name)
    changed: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise AnchorEditError(f"--set must be key=value, got {change!r}", "Write it as key=value")
        tree: Any = _parse(text, f"--set {change}")
        for part in reversed(key.strip().split(".")):
            tree = {part: tree}
        changed = _combined(changed, tree)
    return merge(config, changed)


def merge(settings: T, changes: Mapping[str, Any], path: str = "") -> T:
    """Return a copy of a dataclass with a tree of changes; raise AnchorEditError for unknown keys and wrong types."""
    hints = typing.get_type_hints(type(settings))
    known = [field.name for field in fields(settings)]
    values = {}
    for key, value in changes.items():
        whole = f"{path}{key}"
        if key not in known:
            raise AnchorEditError(f"unknown setting {whole!r}", _nearest(settings, path, whole))
        current = getattr(settings, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                inside = ", ".join(field.name for field in fields(current))
                raise AnchorEditError(f"{whole} must be a group of settings, got {value!r}", f"Set one of {inside}")
            values[key] = merge(cast("DataclassInstance", current), value, f"{whole}.")
        else:
            values[key] = _typed(value, hints[key], whole)
    return replace(settings, **values)


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML, which `load_config` reads."""
    import yaml

    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True)


def keys(settings: Any, path: str = "") -> list[str]:
    """Return the full name of every setting."""
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        found += keys(value, f"{path}{field.name}.") if is_dataclass(value) else [f"{path}{field.name}"]
    return found


def _combined(first: Any, second: Any) -> Any:
    """Merge two trees; where both have a value, the second counts."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return {**first, **{key: _combined(first.get(key), value) for key, value in second.items()}}


def _from_file(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnchorEditError(f"config '{path}' cannot be read ({error})", "Give a name or a YAML file") from None
    tree = _parse(text, f"config '{path}'")
    if not isinstance(tree, dict):
        raise AnchorEditError(f"config '{path}' has no settings", "Write lines `key: value`")
    base = tree.pop("base", "tiny")
    return merge(named_config(base), tree)


def _parse(text: str, source: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise AnchorEditError(f"{source} must be YAML ({reason})", "Correct it there") from None


def _nearest(settings: Any, path: str, unknown: str) -> str:
    """Return the remedy for an unknown key: the nearest one of the same level, else of those below it."""
    below = keys(settings, path)
    level = [f"{path}{field.name}" for field in fields(settings)]
    near = [key for key in below if key.endswith(f".{unknown.removeprefix(path)}")][:1]  # "lr" for "optimiser.lr"
    near = near or difflib.get_close_matches(unknown, level, n=1) or difflib.get_close_matches(unknown, below, n=1)
    return f"Did you mean {near[0]!r}" if near else f"Choose one of {', '.join(level)}"


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Convert a value from YAML to the type of its field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
        return _typed(value, hint, name)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(items):
            raise AnchorEditError(f"{name} must have {len(kinds)} values, got {value!r}", f"Give {len(kinds)}")
        return tuple(_typed(item, kind, name) for item, kind in zip(items, kinds))
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and value is None:  # an empty value
        return ""
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise AnchorEditError(f"{name} must be {_KINDS[hint]}, got {value!r}", f"Give {_KINDS[hint]}")
    return value


def _plain(value: Any) -> Any:
    """Replace tuples by lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
