"""Ask a running server whatever its own schema allows, and judge every answer by that schema."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi import checks

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
ROUTES = {
    "/users/{user_id}", "/users/{user_id}/embedding", "/users/{user_id}/embeddings",
    "/users/{user_id}/neighbors", "/users/{user_id}/questions",
    "/users/{user_id}/questions/{question_id}/answer", "/users/{user_id}/feedback",
    "/users/{user_id}/feedback/{feedback_id}", "/users/{user_id}/taste-codes",
    "/users/{user_id}/taste-codes/{code}", "/users/{user_id}/export",
    "/users/{user_id}/preferences", "/users/{user_id}/preferences/{pair_id}", "/images",
    "/images/{image_id}", "/generate", "/generations/{generation_id}",
    "/generations/{generation_id}/events", "/v1/images/generations", "/v1/models",
    "/v1/models/{model}", "/releases", "/healthz", "/readyz", "/metrics",
}  # fmt: skip


def assert_schema_is_kept(url: str, examples: int, key: str | None = None) -> set[int]:
    """No route is missing, none answers 500, and each answer is one that it promises. The statuses
    that were seen; ``key``: who asks."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    seen = set[int]()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    assert set(schema.raw_schema["paths"]) >= ROUTES
    for found in schema.get_all_operations():
        operation: Any = found.ok()

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def every_answer_is_promised(case: Any) -> None:
            response = case.call(base_url=url, timeout=300, headers=headers)
            seen.add(response.status_code)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=CHECKS)
            if response.status_code in (429, 503):
                assert response.headers["retry-after"]

        every_answer_is_promised()
    return seen
