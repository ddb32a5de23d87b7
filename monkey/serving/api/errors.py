"""Refusals in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

_KINDS = {429: "rate_limit_error"}
"""What an error is called by its status; others below 500 are `invalid_request_error`, the rest `server_error`."""


class ApiError(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
        message: one sentence, for the person who asked.
        param: the field that is wrong, as `messages.0.content`.
        code: what programs tell it by.
        retry_after: seconds after which it may be asked again; None where that would be in vain.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        elif self.status >= 500:
            # OpenAI's client asks again after every server error unless it is told not to.
            headers["X-Should-Retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def shown(value: Any, length: int = 60) -> str:
    """A value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
