"""Every failure of the server in the shape that OpenAI clients read."""

from typing import Any

from herd.base.errors import HerdError

# status -> the `type` of an error that says nothing more particular
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(HerdError):
    """A refusal with its HTTP status. `param` names the field at fault, `code` is for programs.

    retry_after: seconds after which asking again may help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, usual)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """Return the refusal that an exception stands for: a HerdError is the asker's mistake, all else is ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HerdError):
        return ApiError(str(error))
    return ApiError("the server failed on this request; its log says why", status=500, code="internal_error")
