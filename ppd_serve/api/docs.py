"""``/docs``: the schema as one plain page, with nothing fetched from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
summary {{ cursor: pointer }} code, pre {{ font: 14px/1.4 ui-monospace, monospace }}
pre {{ background: #8881; padding: .7rem; overflow: auto }}
b {{ display: inline-block; width: 5rem }}
</style><h1>{title} {version}</h1>
<p>{description} The schema: <a href="openapi.json">openapi.json</a></p>
{routes}<h2>Schemas</h2>{schemas}"""


def page(schema: dict[str, Any]) -> str:
    """The HTML of an OpenAPI document."""
    routes = [
        _route(method, path, route)
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
    ]
    schemas = [
        _fold(f"<code>{escape(name)}</code>", _json(body))
        for name, body in schema.get("components", {}).get("schemas", {}).items()
    ]
    info = {name: escape(str(schema["info"].get(name, ""))) for name in ("title", "version")}
    description = escape(schema["info"].get("description", ""))
    return _PAGE.format(
        **info, description=description, routes="".join(routes), schemas="".join(schemas)
    )


def _route(method: str, path: str, route: dict[str, Any]) -> str:
    answers = {
        status: list(answer.get("content", {})) for status, answer in route["responses"].items()
    }
    told = {name: route[name] for name in ("parameters", "requestBody") if name in route}
    head = f"<b>{method.upper()}</b> <code>{escape(path)}</code>"
    return _fold(
        head, f"<p>{escape(route.get('description', ''))}</p>{_json(told)}{_json(answers)}"
    )


def _fold(head: str, body: str) -> str:
    return f"<details><summary>{head}</summary>{body}</details>"


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1))}</pre>"
