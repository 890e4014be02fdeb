"""The service, described as OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from padim_edge import __version__
from padim_edge.serve.settings import Settings

_JSON = "application/json"
_NUMBER: dict[str, Any] = {"type": "number"}
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_POINT: dict[str, Any] = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_TENSOR = _object({"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"})})

_SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": {**_TEXT, "description": "One line: what was wrong."}}),
    "Region": _object(
        {
            "box": {
                **_list(_COUNT),
                "minItems": 4,
                "maxItems": 4,
                "description": "left, top, right, bottom; the last two are the first outside",
            },
            "area": _COUNT,
            "score": _NUMBER,
            "peak": _POINT,
            "centroid": _POINT,
        }
    ),
    "Judgement": _object(
        {
            "model": _TEXT,
            "decision": {"enum": ["ok", "anomaly"]},
            "score": {"type": ["number", "null"], "description": "null: no number, an anomaly"},
            "threshold": _NUMBER,
            "percentile": {**_NUMBER, "description": "of the good images that score no higher"},
            "regions": _list(_named("Region")),
            "size": _object({"width": _COUNT, "height": _COUNT}),
            "heat_map": {
                "type": ["string", "null"],
                "contentEncoding": "base64",
                "description": "the picture, as PNG or JPEG; null where the score is no number",
            },
        },
        ("heat_map",),
    ),
    "Model": _object(
        {
            "name": _TEXT,
            "ready": {"type": "boolean"},
            "threshold": _NUMBER,
            "false_alarm_rate": _NUMBER,
            "good_images": _COUNT,
            "input": _object({"width": _COUNT, "height": _COUNT}),
            "backbone": _TEXT,
            "engine": _TEXT,
        },
        ("threshold", "false_alarm_rate", "good_images", "input", "backbone", "engine"),
    ),
    "Models": _object({"models": _list(_named("Model"))}),
    "Samples": _object(
        {
            "samples": _list(
                _object(
                    {
                        "number": _COUNT,
                        "kind": {**_TEXT, "description": "the folder that it lies in"},
                        "name": _TEXT,
                    }
                )
            )
        }
    ),
    "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "Live": _object({"live": {"type": "boolean"}}),
    "Ready": _object({"ready": {"type": "boolean"}}),
    "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}}),
    "Metadata": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_TENSOR),
            "outputs": _list(_TENSOR),
        }
    ),
    "Index": _list(
        _object(
            {
                "name": _TEXT,
                "version": _TEXT,
                "state": {"enum": ["READY", "LOADING"]},
                "reason": _TEXT,
            }
        )
    ),
    "InferRequest": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"const": "image"},
                        "datatype": {"const": "UINT8"},
                        "shape": {**_list(_COUNT), "minItems": 4, "maxItems": 4},
                        "data": {"type": "array", "description": "flat or nested, 0 to 255"},
                        "parameters": {"type": "object"},
                    },
                    "required": ["name", "datatype", "shape"],
                },
            },
            "outputs": _list(
                {
                    "type": "object",
                    "properties": {"name": {"enum": ["score", "score_map"]}},
                    "required": ["name"],
                }
            ),
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    },
    "InferResponse": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "outputs": _list(
                _object(
                    {
                        "name": _TEXT,
                        "datatype": {"const": "FP32"},
                        "shape": _list(_COUNT),
                        "data": _list(_NUMBER),
                        "parameters": {"type": "object"},
                    },
                    ("data", "parameters"),
                )
            ),
        },
        ("id",),
    ),
}

_WORDS = {
    400: "The request makes no sense; or, of health: no.",
    401: "A token is needed.",
    403: "Another site's page asked for this.",
    404: "There is no such model or address.",
    408: "The headers or the body came too slowly.",
    413: "The body has too many bytes, or the image too many pixels.",
    415: "The body is no image, or it is compressed.",
    421: "A server on loopback is asked for by another name than this machine's.",
    422: "The image is damaged, or too small for the crop.",
    429: "Too many wait, or too many tokens were wrong: come back after Retry-After seconds.",
    431: "The headers are too long.",
    500: "The server's fault.",
    503: "The model is being loaded, or the server is going away.",
}


_EVERYWHERE = (403, 408, 421, 431)
"""What may be answered before anybody looks at what is asked for."""


def _answers(schema: str, *codes: int, more: dict[str, Any] | None = None) -> dict[str, Any]:
    good = {_JSON: {"schema": _named(schema)}, **(more or {})}
    return {"200": {"description": "Done.", "content": good}, **_errors(*codes)}


def _errors(*codes: int) -> dict[str, Any]:
    said: dict[str, Any] = {_JSON: {"schema": _named("Error")}}
    plain: dict[str, Any] = {"text/plain": {}}  # of what was not read to its end
    return {
        str(code): {"description": _WORDS[code], "content": plain if code == 408 else said}
        for code in codes
    }


def _asked(path: str, what: str, schema: str, *codes: int) -> dict[str, Any]:
    return {"summary": what, "parameters": _parameters(path), "responses": _answers(schema, *codes)}


def _parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in ("name", "version", "number")
        if f"{{{name}}}" in path
    ]


def document(settings: Settings) -> dict[str, Any]:
    """The description of a service with these limits."""
    paths: dict[str, Any] = {
        "/v1/models": {"get": _asked("", "The models.", "Models")},
        "/v1/samples": {"get": _asked("", "The photos that the page shows.", "Samples")},
        "/v2": {"get": _asked("", "The server.", "Server")},
        "/v2/repository/index": {"post": _asked("", "The models, as Triton has it.", "Index")},
    }
    for path, what, schema in (
        ("/v2/health/live", "Whether the server runs; no token is needed.", "Live"),
        ("/v2/health/ready", "Whether every model answers; no token is needed.", "Ready"),
    ):
        paths[path] = {"get": {**_asked(path, what, schema), "security": []}}
        content = {_JSON: {"schema": _named(schema)}}
        paths[path]["get"]["responses"]["400"] = {"description": "No.", "content": content}
    for path, what, media in (
        ("/v1/samples/{number}", "A photo that the page shows.", "image/*"),
        ("/v1/samples/{number}/thumbnail", "The same, small.", "image/jpeg"),
    ):
        given = {"200": {"description": "Done.", "content": {media: {}}}}
        paths[path] = {
            "get": {
                "summary": what,
                "parameters": _parameters(path),
                "responses": {**given, **_errors(404, 422)},
            }
        }
    judge = "/v1/models/{name}/judge"
    paths[judge] = {
        "post": {
            "summary": "Judge one image file: PNG, JPEG, BMP, TIFF, WebP, GIF or PPM.",
            "description": (
                f"At most {settings.max_bytes} bytes and {settings.max_pixels} pixels. With "
                "Accept: image/png the answer is the picture with the heat map over it."
            ),
            "parameters": [
                *_parameters(judge),
                {
                    "name": "heat_map",
                    "in": "query",
                    "schema": {"enum": ["png", "jpeg"]},
                    "description": "Put that picture into the JSON; jpeg: without the bar below.",
                },
            ],
            "requestBody": {"required": True, "content": {"image/*": {}}},
            "responses": _answers(
                "Judgement",
                *(400, 404, 413, 415, 422, 429, 500, 503),
                more={"image/png": {}},
            ),
        }
    }
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        paths[model] = {"get": _asked(model, "A model's tensors.", "Metadata", 404, 503)}
        ready = _asked(model, "Whether the model answers.", "ModelReady", 404)
        content = {_JSON: {"schema": _named("ModelReady")}}
        ready["responses"]["400"] = {"description": "No.", "content": content}
        paths[f"{model}/ready"] = {"get": ready}
        paths[f"{model}/infer"] = {
            "post": {
                "summary": "Judge prepared images; JSON, or binary tensor data after it.",
                "description": f"At most {settings.max_batch} images.",
                "parameters": _parameters(model),
                "requestBody": {
                    "required": True,
                    "content": {
                        _JSON: {"schema": _named("InferRequest")},
                        "application/octet-stream": {},
                    },
                },
                "responses": _answers(
                    "InferResponse",
                    *(400, 404, 413, 415, 422, 429, 500, 503),
                    more={"application/octet-stream": {}},
                ),
            }
        }
    paths["/metrics"] = {
        "get": {
            "summary": "What Prometheus reads.",
            "responses": {"200": {"description": "Done.", "content": {"text/plain": {}}}},
        }
    }
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].update(_errors(*_EVERYWHERE))
            if "security" not in operation:  # those of health say that they need no token
                operation["responses"].update(_errors(401, 429))
    return {
        "openapi": "3.1.0",
        "info": {"title": "padim-edge serve", "version": __version__},
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
