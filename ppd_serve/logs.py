"""Log lines, and the request that each of them is about.

The id is ``X-Request-ID``'s (``api/edge.py`` sets it). It goes wherever the request's context goes,
into tasks (``gateway/running.py``) and threads, and with each call to a part that may log.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
OURS = "ppd_serve"
_TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


def configure(format: LogFormat) -> None:
    """Send what this package logs in this process, from warnings on, to the standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(with_request_id)
    handler.setFormatter(JsonLines() if format == "json" else logging.Formatter(_TEXT))
    logging.getLogger(OURS).handlers = [handler]


def with_request_id(record: logging.LogRecord) -> bool:
    """A filter that leaves nothing out: it writes down the id while it is known."""
    record.request_id = request_id.get() or "-"
    return True


class JsonLines(logging.Formatter):
    """One object a line: time (seconds since 1970), level, logger, request_id, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told)
