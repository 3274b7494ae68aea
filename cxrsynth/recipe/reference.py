"""The reference of all recipe keys as Markdown, made from the schema."""

import json
from collections.abc import Iterator
from typing import Any, get_args

from cxrsynth.recipe.schema import Recipe, Section

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def recipe_reference() -> str:
    """One heading and one table per section, in the order of a recipe file; sections used twice appear once."""
    whole = Recipe.model_json_schema()
    schemas = whole["$defs"] | {Recipe.__name__: whole}
    return "\n".join(_table(place, section, schemas) for place, section in _sections("", Recipe, set()))


def _sections(place: str, section: type[Section], seen: set[type[Section]]) -> Iterator[tuple[str, type[Section]]]:
    """Each section below this one, once, with its dotted place."""
    if section in seen:
        return
    seen.add(section)
    yield place, section
    for name, field in section.model_fields.items():
        inner = list(_sections_in(field.annotation))
        for one in inner:
            step = name
            if get_args(field.annotation)[:1] == (str,):
                step = f"{name}.NAME"
            elif len(inner) > 1:
                step = f"{name} ({_tag(one)})"
            yield from _sections(f"{place}.{step}".lstrip("."), one, seen)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Sections among the types of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _tag(section: type[Section]) -> str:
    """The value of `stage` that chooses this section."""
    return str(get_args(section.model_fields["stage"].annotation)[0])


def _table(place: str, section: type[Section], schemas: dict[str, Any]) -> str:
    title = f"`{place}`" if place else "Top level"
    lines = [f"### {title}", "", section.__doc__ or "", "", "| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    properties = schemas[section.__name__]["properties"]
    for name in sorted(section.model_fields, key=lambda name: name != "stage"):
        schema = properties[name]
        cells = (f"`{name}`", _values(schema, schemas), _default(schema), section.model_fields[name].description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _values(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The values a key takes."""
    if "$ref" in schema:
        named = schemas[schema["$ref"].rsplit("/", 1)[1]]
        return _values(named, schemas) if "enum" in named else "section"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_values(one, schemas) for one in choices if one.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "array":
            return f"list of {_values(schema['items'], schemas)}"
        case "object":
            return f"name: {_values(schema['additionalProperties'], schemas)}"
        case "boolean":
            return "true or false"
        case "string":
            return "path" if schema.get("format") == "path" else "text"
        case kind:
            bounds = (f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema)
            return f"{kind} {' and '.join(bounds)}"


def _number(value: float) -> str:
    return f"2^{int(value).bit_length() - 1}" if value > 1e12 else f"{value:g}"


def _default(schema: dict[str, Any]) -> str:
    """The default; empty where the description explains it, or a section of its own does."""
    if "default" not in schema:
        return "" if schema.get("type") == "object" else "required"
    default = schema["default"]
    if default is None or (isinstance(default, dict) and default):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"
