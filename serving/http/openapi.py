"""/openapi.json, generated from the table of operations and from the messages' types and limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from serving.answer_bodies import Readiness, Refusal
from serving.config import ServingConfig
from serving.operations import Operation, limits
from serving.request_bodies import MAX_KEY

DESCRIPTION = """Recommendations from a model that is seconds old. Every answer names the version of the weights that it
comes from, and the age of the newest action that they have learned from; every refusal lists what was expected, what
came, and what to do. Identifiers are the producers' own: `5` and `"5"` are the same item, `"05"` is another."""
MEANINGS = {
    400: "The request is not valid HTTP",
    401: "No token, or an unknown one",
    403: "The token's role does not allow this",
    408: "The body did not arrive within serving.read_timeout_s",
    413: "The body is larger than serving.max_body_bytes",
    415: "The content type is not JSON",
    422: "Something in the request is invalid",
    500: "An internal error; see the server's log",
    503: "No version yet, or too many requests are waiting: try again after Retry-After seconds",
}
_GIVEN, _ABSENT = {"not": {"type": "null"}}, {"type": "null"}
ONE_OF = [
    {"required": ["user"], "properties": {"user": _GIVEN, "history": _ABSENT}},
    {"required": ["history"], "properties": {"user": _ABSENT, "history": _GIVEN}},
]
"""Either a user or a history, which types cannot express."""


def openapi(operations: Sequence[Operation], config: ServingConfig) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these operations, with this configuration's limits."""
    kinds = [kind for each in operations for kind in (each.request, each.answer) if kind is not None]
    _, components = msgspec.json.schema_components([*kinds, Refusal], ref_template="#/components/schemas/{name}")
    for schema in components.values():
        _bound(schema, config)
    paths: dict[str, Any] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, is_open=not config.tokens_file)
    tags = list(dict.fromkeys(each.tag for each in operations))
    schemes = {} if not config.tokens_file else {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": "1", "description": DESCRIPTION},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": components, **schemes},
    }


def _bound(schema: dict[str, Any], config: ServingConfig) -> None:
    """Add what types do not express: the configured limits, and that a user excludes a history."""
    properties = schema.get("properties", {})
    if "user" in properties and "history" in properties:
        schema["oneOf"] = ONE_OF
    if schema.get("additionalProperties") is not False:  # answers have no limits
        return
    for name, (most, _) in limits(config).items():
        for part in (properties.get(name, {}), *properties.get(name, {}).get("anyOf", ())):
            if part.get("type") == "array":
                part["maxItems"] = most
            elif part.get("type") == "integer" and name == "k":
                part["maximum"] = most


def _operation(operation: Operation, *, is_open: bool) -> dict[str, Any]:
    """One entry under a path."""
    text = {"type": "string"} if operation.media == "text/plain" else {}
    schema = text if operation.answer is None else _ref(operation.answer)
    answer = {"description": "The answer", "content": {operation.media: {"schema": schema}}}
    responses: dict[str, Any] = {"200": answer}
    guarded = () if is_open or not operation.role else (401, 403)
    bodied = (400, 408, 413, 415, 422, 500) if operation.request is not None else ()
    for status in (*bodied, *guarded, *operation.statuses):
        refusal = _ref(Readiness if operation.path == "/readyz" else Refusal)
        responses[str(status)] = {
            "description": MEANINGS[status], "content": {"application/json": {"schema": refusal}},
        }  # fmt: skip
    found: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{operation.path.replace('/', '_')}",
        "tags": [operation.tag], "summary": operation.summary, "responses": responses,
    }  # fmt: skip
    if operation.text:
        found["description"] = operation.text
    if operation.request is not None:
        content: dict[str, Any] = {"schema": _ref(operation.request)}
        if operation.example:
            content["example"] = dict(operation.example)
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    if operation.parameter:
        parameter = {"name": operation.parameter, "in": "query", "required": True}
        found["parameters"] = [{**parameter, "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY}}]
    if guarded:
        found["security"] = [{"token": []}]
    return found


def _ref(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
