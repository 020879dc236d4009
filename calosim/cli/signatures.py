"""Names and types of options, read from the sources without importing them: torch and lightning take seconds to import."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["Option", "constant", "descriptions", "method_options", "options", "summary"]

#: Types that have no settings of their own.
_PLAIN = frozenset(
    {
        "bool",
        "float",
        "int",
        "str",
        "list",
        "tuple",
        "List",
        "Tuple",
        "Sequence",
        "Iterable",
        "Literal",
        "Optional",
        "Path",
    }
    | {"PathLike", "Union", "timedelta"}
)
_LISTS = frozenset({"list", "List", "tuple", "Tuple", "Sequence"})


@dataclass(frozen=True)
class Option:
    """An argument of a function or a class.

    Attributes:
        name: Its name.
        kind: Its annotation, if it has one.
        required: Whether it has no default.
        module: Where the names in the annotation are known.
        default: What it is otherwise, if it has a default.
    """

    name: str
    kind: ast.expr | None
    required: bool
    module: str
    default: ast.expr | None = None

    @property
    def alternatives(self) -> list[tuple[str, ast.expr]]:
        """The types of a union, or the only one, each with the module that knows its names."""
        return [] if self.kind is None else list(_alternatives(self.module, self.kind))

    @property
    def names(self) -> list[str]:
        """The alternatives by name: ``["list", "None"]`` of ``list[str] | None``."""
        return [_name(kind) for _, kind in self.alternatives]

    @property
    def said(self) -> str:
        """Type and default in words: ``int, 5 by default``."""
        kind = "" if self.kind is None else re.sub(r"\bNone\b", "null", ast.unparse(self.kind).strip("'"))
        kind = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", "|"), kind)
        if self.required:
            return f"{kind}, required"
        try:
            value = self.default and ast.literal_eval(self.default)
        except ValueError:  # a name, or a field's factory
            if not isinstance(self.default, ast.Name):
                made = self.default is not None and "factory" in ast.unparse(self.default)
                return f"{kind}, empty by default" if made else kind
            value = constant(self.module, self.default.id)
        return f"{kind}, {_yaml(value)} by default"

    @property
    def is_list(self) -> bool:
        """Whether several values are welcome."""
        return any(name in _LISTS for name in self.names)

    @property
    def of_text(self) -> bool:
        """Whether it takes text, or a list of texts."""
        return any(_name(kind) == "str" for _, outer in self.alternatives for kind in (outer, *_inner(outer)))

    @property
    def settings(self) -> dict[str, Option] | None:
        """The options inside of it, if it is a dataclass of settings or one of several; None if that cannot be told."""
        found: dict[str, Option] = {}
        if self.kind is None:
            return None
        for module, kind in self.alternatives:
            name = _name(kind)
            if name in _PLAIN or name == "None":
                continue
            inside = options(module, name) if _is_settings(module, name) else None
            if inside is None:
                return None
            found |= inside
        return found

    def refusal(self, value: Any) -> str:
        """What would be expected instead of a value; empty if it will do, or if only its parser can tell."""
        expected = [_refusal(kind, value) for _, kind in self.alternatives]
        return " or ".join(expected) if expected and all(expected) else ""


def options(module: str, name: str) -> dict[str, Option] | None:
    """The arguments of a function, or of what makes an object of a class, by name.

    Args:
        module: Where the name is known, such as ``calosim.models``.
        name: The function or class.

    Returns:
        None if they cannot be told, such as those of ``**arguments``.
    """
    where, node = _find(module, name)
    if isinstance(node, ast.FunctionDef):
        return _arguments(where, node)
    if not isinstance(node, ast.ClassDef):
        return None
    bases = [options(where, _name(base)) or {} for base in node.bases]
    if _is_dataclass(node):
        return {name: option for found in (*bases, _fields(where, node)) for name, option in found.items()}
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            return _arguments(where, item)
    return next((found for found in bases if found), {})


def summary(module: str, name: str) -> str:
    """The first paragraph of a function's or a class' docstring."""
    _, node = _find(module, name)
    return " ".join(_docstring(node).split("\n\n")[0].split())


def descriptions(module: str, name: str) -> dict[str, str]:
    """What a docstring says of each argument of a function, or of what makes an object of a class."""
    _, node = _find(module, name)
    made = [item for item in getattr(node, "body", ()) if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    found: dict[str, list[str]] = {}
    for text in map(_docstring, (node, *made)):
        inside, last = False, ""
        for line in text.splitlines():
            if line.strip() and not line.startswith(" "):
                inside = line in ("Args:", "Attributes:")
            elif begin := re.match(r" {4}(\w+): (.*)", line) if inside else None:
                last = begin[1]
                found[last] = [begin[2]]
            elif inside and last:
                found[last].append(line)
    plain = {
        key: re.sub(r"``|:\w+:(?=`)", lambda m: "`" * (m[0] == "``"), " ".join(lines)) for key, lines in found.items()
    }
    return {key: " ".join(text.split()) for key, text in plain.items()}


def method_options(module: str, name: str, method: str) -> dict[str, Option] | None:
    """The arguments of a method of a class."""
    where, node = _find(module, name)
    for item in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return _arguments(where, item)
    return None


def constant(module: str, name: str) -> Any:
    """The value of a module's constant that is written out."""
    _, node = _find(module, name)
    assert isinstance(node, ast.expr)
    return ast.literal_eval(node)


def _docstring(node: ast.AST | None) -> str:
    return (ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None) or ""


def _path(module: str) -> tuple[Path | None, bool]:
    """A module's file, and whether it is a package."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)  # of the outermost package, which is not imported
    if spec is None or not spec.submodule_search_locations:
        return None, False
    place = Path(spec.submodule_search_locations[0], *rest)
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file():
            return path, path.name == "__init__.py"
    return None, False


@lru_cache
def _tree(module: str) -> ast.Module | None:
    path, _ = _path(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else None


def _statements(module: str) -> Iterator[ast.stmt]:
    tree = _tree(module)
    for node in tree.body if tree else ():
        yield from node.body if isinstance(node, ast.If) else (node,)


@lru_cache
def _find(module: str, name: str) -> tuple[str, ast.AST | None]:
    """The module in which a name is made, and what makes it."""
    for node in _statements(module):
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name == name:
                return module, node
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return module, value
            case ast.AnnAssign(target=ast.Name(id=found), value=value) if found == name:
                return module, value
            case ast.ImportFrom(module=origin, names=names, level=level):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _find(".".join([*_parents(module, level), *([origin] if origin else [])]), alias.name)
    return module, None


def _parents(module: str, level: int) -> list[str]:
    """The packages that the dots of a relative import stand for."""
    parts, up = module.split("."), level - _path(module)[1]
    return parts[: len(parts) - up] if level else []


def _arguments(module: str, node: ast.FunctionDef) -> dict[str, Option] | None:
    if node.args.kwarg:
        return None
    listed = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(listed) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(listed, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    named = [(a, default) for a, default in pairs if a.arg not in ("self", "cls")]
    return {a.arg: Option(a.arg, a.annotation, default is None, module, default) for a, default in named}


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_name(d.func if isinstance(d, ast.Call) else d) == "dataclass" for d in node.decorator_list)


def _is_settings(module: str, name: str) -> bool:
    _, node = _find(module, name)
    return isinstance(node, ast.ClassDef) and _is_dataclass(node)


def _fields(module: str, node: ast.ClassDef) -> dict[str, Option]:
    return {
        item.target.id: Option(item.target.id, item.annotation, item.value is None, module, item.value)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and _name(item.annotation) != "ClassVar"
    }


def _name(kind: ast.AST) -> str:
    """The name of a type: ``list`` of ``list[str]``."""
    match kind:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
        case ast.Constant(value=None):
            return "None"
    return "?"


def _inner(kind: ast.expr) -> list[ast.expr]:
    """What stands in the brackets of a type."""
    if not isinstance(kind, ast.Subscript):
        return []
    return kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]


def _alternatives(module: str, kind: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match kind:
        case ast.Constant(value=str(text)):
            yield from _alternatives(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from _alternatives(module, left)
            yield from _alternatives(module, right)
        case ast.Subscript() if _name(kind) in ("Optional", "Union"):
            for inner in _inner(kind):
                yield from _alternatives(module, inner)
            if _name(kind) == "Optional":
                yield module, ast.Constant(value=None)
        case ast.Name(id=name) if name not in _PLAIN:
            where, found = _find(module, name)
            if isinstance(found, ast.BinOp | ast.Subscript | ast.Name):
                yield from _alternatives(where, found)
            else:
                yield module, kind
        case _:
            yield module, kind


def _refusal(kind: ast.expr, value: Any) -> str:
    """What one type expects instead of a value, as far as that shows without the type itself."""
    text = str(value).strip()
    match _name(kind):
        case "None":
            return "" if value is None else "null"
        case "bool":
            return (
                ""
                if isinstance(value, bool) or text.lower() in ("yes", "no", "true", "false", "0", "1")
                else "true or false"
            )
        case "int" | "float" as number:
            return "" if _is_number(text) else "a whole number" if number == "int" else "a number"
        case "Literal":
            known = [str(k.value) for k in _inner(kind) if isinstance(k, ast.Constant)]
            return (
                ""
                if text in known or len(known) < len(_inner(kind))
                else " or ".join([", ".join(known[:-1]), known[-1]])
            )
    return ""


def _yaml(value: Any) -> str:
    """A default as it would be written on the command line."""
    text = json.dumps(value)
    return f"`{value}`" if isinstance(value, str) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
