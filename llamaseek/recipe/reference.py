"""The reference of every recipe field, docs/recipes.md, generated from the schema.

python -m llamaseek.recipe.reference > docs/recipes.md
"""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

from llamaseek.recipe import parallel, post_training, schema

INTRODUCTION = """\
# Recipe reference

Every field of a recipe with its type, its default value and its meaning. This page is generated
from the schema by `python -m llamaseek.recipe.reference`. A field is set in the recipe's YAML file
or, by its full name, on the command line, as in `train.steps=200`. An unknown field is an error
that names the nearest known one; a value that is not allowed is an error that says what is allowed.
"""
MODULES = (parallel, post_training, schema)
"""Where the sections of a recipe are."""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference() -> str:
    """docs/recipes.md: one table for each section of the recipe, in the order of the schema."""
    whole = schema.Recipe.model_json_schema()
    meanings = field_docstrings()
    parts = [INTRODUCTION]
    paths = _sections(whole)
    for name in paths:
        parts.append(_table(name, paths, whole["$defs"].get(name, whole), meanings[name]))
    return "\n".join(parts)


def field_docstrings() -> dict[str, dict[str, str]]:
    """The string below each field of each section, in one line.

    Read from the source, since Python does not keep them.
    """
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for module in MODULES
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
    }


def _sections(whole: dict[str, Any]) -> dict[str, str]:
    """Every section's class name → its first path in the recipe; the recipe itself has none."""
    found: dict[str, str] = {}

    def visit(name: str, path: str) -> None:
        if name in found:
            return
        found[name] = path
        for field, spec in whole["$defs"].get(name, whole)["properties"].items():
            for inner in _references(spec):
                visit(inner, f"{path}.{field}".lstrip("."))

    visit(whole["title"], "")
    return found


def _references(spec: Any) -> list[str]:
    if isinstance(spec, list):
        return [name for one in spec for name in _references(one)]
    if not isinstance(spec, dict):
        return []
    own = [spec["$ref"].rpartition("/")[2]] if "$ref" in spec else []
    return own + [name for value in spec.values() for name in _references(value)]


def _table(
    name: str, paths: dict[str, str], section: dict[str, Any], meanings: dict[str, str]
) -> str:
    path = paths[name]
    title = f"## {path}" if path else "## The recipe"
    lines = [title, "", inspect.cleandoc(section["description"]), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field, spec in section["properties"].items():
        key = f"{path}.{field}".lstrip(".")
        default = _default(field, spec, section.get("required", []))
        cells = [f"`{key}`", _type(spec, paths), default, meanings[field]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _default(field: str, spec: dict[str, Any], required: list[str]) -> str:
    if field in required:
        return "required"
    if _references(spec) and spec.get("default"):
        return "its defaults"
    # A default factory is not in the JSON schema; those of the recipe make empty containers.
    empty: Any = {"array": [], "object": {}}.get(spec.get("type", ""))
    value = spec.get("default", empty)
    return (
        "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    )


def _type(spec: dict[str, Any], paths: dict[str, str]) -> str:
    """A JSON schema's type in words, with its bounds or allowed values; sections are links."""
    if "anyOf" in spec:
        return " or ".join(_type(one, paths) for one in spec["anyOf"])
    if "$ref" in spec:
        path = paths[_references(spec)[0]]
        return f"[{path}](#{path.replace('.', '')})"
    if "const" in spec:
        return f"`{spec['const']}`"
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if spec["type"] == "array":
        inner = spec.get("items") or spec["prefixItems"][0]
        count = f"{len(spec['prefixItems'])} × " if "prefixItems" in spec else ""
        return f"list of {count}{_type(inner, paths)}"
    if spec["type"] == "object":
        values = spec.get("additionalProperties")
        return f"mapping to {_type(values, paths)}" if isinstance(values, dict) else "mapping"
    bounds = [f"{sign} {spec[key]:,}" for key, sign in BOUNDS.items() if key in spec]
    word = {"boolean": "true or false", "null": "none"}.get(spec["type"], spec["type"])
    return " ".join([word, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print(reference(), end="")
