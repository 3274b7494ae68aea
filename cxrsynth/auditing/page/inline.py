"""Pages of one file: style and script are part of them, and a Content-Security-Policy names both by their hash."""

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def environment(package: str) -> jinja2.Environment:
    """Templates of a package's folder `templates`; all text is escaped, and a missing value is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["script_json"] = script_json
    return made


def asset(package: str, name: str) -> Markup:
    """A style sheet or script of a package's folder `templates`, as it is."""
    return Markup((resources.files(package) / "templates" / name).read_text(encoding="utf-8"))


def content_policy(style: str, script: str, *, images: bool) -> Markup:
    """The policy of a page: this style and this script alone, nothing loaded; `images`, whether data URIs are shown."""
    pictures = "img-src data:; " if images else ""
    return Markup(
        f"default-src 'none'; {pictures}style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element around it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
