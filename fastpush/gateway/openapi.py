"""The OpenAPI document, made from the types that validate and the descriptions beside the handlers.

`python -m fastpush.gateway.openapi` prints it; docs/openapi.json is that, and the admin listener serves it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.api import Answer, Gateway, HotRoute, Operation, Parameter
from fastpush.gateway.problems import CONTENT_TYPE

__all__ = ["document", "route"]

DESCRIPTION = """\
Takes notifications, keeps them on disk until each has one recorded end, and pushes them through Apple's
service. Operations marked `x-listener: admin` are on the admin listener only.
"""

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An ingest key, or a phone's secret."},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as password."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}

PROBLEMS = {
    400: "The request cannot be read.",
    401: "No key, or a wrong one.",
    403: "The key is not for this.",
    404: "There is no such thing, or it is not the key's.",
    405: "There is no such method here.",
    409: "It contradicts what was accepted before.",
    413: "The body is too large.",
    415: "The body has another form than is taken here.",
    422: "A value is not as it must be; `field` names it.",
    429: "Too many requests; see Retry-After.",
    500: "The gateway failed.",
    503: "Not now; see Retry-After.",
    507: "The disk is full; nothing was stored.",
}

WITH_KEY = (401, 403, 429)
WITH_BODY = (400, 413, 415, 422)
WRITING = (503,)

PATH = "/openapi.json"
ITSELF = Operation("This document", answers={200: dict[str, Any]})


# One entry of a docstring's section of attributes: a line, and those that are indented more.
ATTRIBUTE = re.compile(r"^ +(\w+(?:, \w+)*): (.+(?:\n {3,}(?!\w+(?:, \w+)*: ).+)*)", re.MULTILINE)


class Problem(msgspec.Struct, forbid_unknown_fields=False):
    """RFC 9457. Further members, such as `stored`, depend on the kind."""

    type: str
    title: str
    status: int
    detail: str = ""
    field: str = ""
    """The place in the body, the parameter or the header at fault."""


class Described(NamedTuple):
    method: str
    path: str
    name: str
    admin: bool
    operation: Operation


class _Nobody:
    """A gateway for the building of routes, which bind it and ask it nothing."""


def routes_of(ingest: Iterable[ModuleType], admin: Iterable[ModuleType]) -> Iterator[Described]:
    """Every operation of both listeners, those of ingest first.

    Raises:
      TypeError: a route has no description.
    """
    gateway = cast(Gateway, _Nobody())
    seen: set[tuple[str, str]] = set()
    for is_admin, modules, names in (
        (False, ingest, ("hot_routes", "routes")),
        (True, admin, ("admin_routes",)),
    ):
        for module in modules:
            for name in names:
                for one in getattr(module, name, lambda gateway: [])(gateway):
                    for method, path, handler in _operations(one):
                        if (method, path) not in seen:
                            seen.add((method, path))
                            yield Described(
                                method, path, handler.__name__, is_admin, _described(handler, path)
                            )
    yield Described("GET", PATH, "openapi", True, ITSELF)


def _operations(one: BaseRoute | HotRoute) -> Iterator[tuple[str, str, Any]]:
    if isinstance(one, HotRoute):
        yield one.method, one.path, one.app
    elif isinstance(one, Route) and one.include_in_schema:
        for method in sorted((one.methods or set()) - {"HEAD"}):
            yield method, one.path_format, one.endpoint


def _described(handler: Any, path: str) -> Operation:
    found = getattr(handler, "operation", None)
    if found is None:
        raise TypeError(f"{handler.__qualname__}, for {path}, is not described by @operation")
    return cast(Operation, found)


def document(ingest: Iterable[ModuleType], admin: Iterable[ModuleType]) -> dict[str, Any]:
    """The document of these modules' routes."""
    described = list(routes_of(ingest, admin))
    counted = Counter(one.name for one in described)
    described = [
        one._replace(name=f"{one.name}_{one.method.lower()}") if counted[one.name] > 1 else one
        for one in described
    ]
    schemas = _Schemas(described)
    paths: dict[str, dict[str, Any]] = {}
    for one in described:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastpush gateway", "version": "1", "description": DESCRIPTION},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": schemas.components, "securitySchemes": KEYS},
    }


class _Schemas:
    """The schemas of all types, made at once so that types of one name are told apart."""

    def __init__(self, described: Iterable[Described]) -> None:
        kinds: list[Any] = [Problem]
        for one in described:
            kinds += [parameter.type for parameter in one.operation.parameters]
            kinds += [kind for _, kind in _contents(one.operation)]
            for answer in _answers(one.operation).values():
                kinds += answer.type if isinstance(answer.type, tuple) else [answer.type]
        self._kinds = [kind for kind in kinds if kind is not None]
        found, components = msgspec.json.schema_components(
            self._kinds, ref_template="#/components/schemas/{name}"
        )
        self._found = [_cleaned(schema) for schema in found]
        self.components = {name: _cleaned(schema) for name, schema in sorted(components.items())}

    def of(self, kind: Any) -> dict[str, Any]:
        """A tuple is one of several."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(each) for each in kind]}
        found: dict[str, Any] = self._found[self._kinds.index(kind)]
        return found


def _cleaned(schema: Any) -> Any:
    """Without `default: null`, which says nothing, and with docstrings of one line a paragraph."""
    if isinstance(schema, list):
        return [_cleaned(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {
        name: _cleaned(value) for name, value in schema.items() if not (name == "default" and value is None)
    }
    if isinstance(cleaned.get("description"), str):
        text, fields = _told(cleaned["description"])
        cleaned["description"] = text
        for name, told in fields.items():
            if name in cleaned.get("properties", {}):
                cleaned["properties"][name].setdefault("description", told)
    if cleaned.get("required") == []:
        del cleaned["required"]
    return cleaned


def _told(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring without its section of attributes, and these by name; each paragraph one line."""
    text, _, attributes = inspect.cleandoc(docstring).partition("Attributes:\n")
    fields: dict[str, str] = {}
    for names, told in ATTRIBUTE.findall(attributes):
        fields |= dict.fromkeys(names.split(", "), " ".join(told.split()))
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip()), fields


def _contents(described: Operation) -> list[tuple[str, Any]]:
    if described.body is None:
        return []
    if isinstance(described.body, Mapping):
        return list(described.body.items())
    return [("application/json", described.body)]


def _answers(described: Operation) -> dict[int, Answer]:
    return {
        status: answer if isinstance(answer, Answer) else Answer(answer)
        for status, answer in described.answers.items()
    }


def _operation(one: Described, schemas: _Schemas) -> dict[str, Any]:
    described = one.operation
    contents = _contents(described)
    found: dict[str, Any] = {"operationId": one.name, "summary": described.summary}
    if described.description:
        found["description"] = described.description
    if described.tag:
        found["tags"] = [described.tag]
    if one.admin:
        found["x-listener"] = "admin"
    if described.scope is not None:
        found["x-scope"] = described.scope
        found["security"] = [{name: []} for name in KEYS]
    else:
        found["security"] = []
    parameters = _parameters(one, schemas)
    if parameters:
        found["parameters"] = parameters
    if contents:
        found["requestBody"] = {
            "required": True,
            "content": {content_type: {"schema": schemas.of(kind)} for content_type, kind in contents},
        }
    found["responses"] = _responses(one, schemas, bool(contents))
    return found


def _parameters(one: Described, schemas: _Schemas) -> list[dict[str, Any]]:
    named = {(parameter.where, parameter.name) for parameter in one.operation.parameters}
    in_path = [name for name in re.findall(r"\{(\w+)\}", one.path) if ("path", name) not in named]
    parameters = [*(Parameter(name, "path", required=True) for name in in_path), *one.operation.parameters]
    return [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": parameter.required or parameter.where == "path",
            "schema": {"type": "string"} if parameter.type is str else schemas.of(parameter.type),
        }
        | ({"description": parameter.description} if parameter.description else {})
        for parameter in parameters
    ]


def _responses(one: Described, schemas: _Schemas, has_body: bool) -> dict[str, Any]:
    described = one.operation
    responses: dict[int, dict[str, Any]] = {}
    refusals = set(described.refusals)
    refusals |= set(WITH_KEY) if described.scope is not None else set()
    refusals |= set(WITH_BODY) if has_body else set()
    refusals |= set(WRITING) if one.method != "GET" else set()
    for status in refusals - described.answers.keys():
        content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[status] = {"description": PROBLEMS[status], "content": content}
    for status, answer in _answers(described).items():
        response: dict[str, Any] = {"description": answer.description or described.summary}
        if answer.type is not None:
            response["content"] = {answer.content_type: {"schema": schemas.of(answer.type)}}
        if answer.headers:
            response["headers"] = {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in answer.headers.items()
            }
        responses[status] = response
    return {str(status): responses[status] for status in sorted(responses)}


def text(found: dict[str, Any]) -> bytes:
    """As it is checked in."""
    return json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n"


def route(ingest: Iterable[ModuleType], admin: Iterable[ModuleType]) -> Route:
    """`GET /openapi.json`."""
    body = text(document(ingest, admin))

    async def show(request: Request) -> Response:
        return Response(body, media_type="application/json")

    return Route(PATH, show, methods=["GET"])


if __name__ == "__main__":
    import sys

    from fastpush.gateway.app import ADMIN, INGEST

    sys.stdout.buffer.write(text(document(INGEST, ADMIN)))
