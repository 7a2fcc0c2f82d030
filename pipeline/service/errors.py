"""One shape for everything that goes wrong: a stable code, a status, one line for people."""

from worldloom.stages.rejects import InputRejected

# Of what a decoder refuses; everything else is 422, what cannot be worked with.
STATUSES = {
    "type_mismatch": 415,
    "format_not_allowed": 415,
    "image_too_large": 413,
    "image_metadata_too_large": 413,
    "audio_too_long": 413,
    "audio_too_large": 413,
    "text_too_long": 413,
    "action_too_large": 413,
    "tar_limits": 413,
    "text_not_utf8": 400,
}


COME_AGAIN = 2.0  # seconds that whoever finds no room is told to wait, at least


class ServiceError(Exception):
    """Ends a request; `param` is the part of it that is to blame, `retry_after` seconds after which it may go better."""

    def __init__(self, code: str, status: int, message: str, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.status, self.message, self.param, self.retry_after = code, status, message, param, retry_after

    @classmethod
    def of(cls, refused: InputRejected, param: str | None) -> "ServiceError":
        """What a decoder refused."""
        return cls(refused.code, STATUSES.get(refused.code, 422), refused.detail or refused.code.replace("_", " "), param)


def not_found(what: str) -> ServiceError:
    """The same whether it never was, is gone, or is somebody else's."""
    return ServiceError("not_found", 404, f"there is no such {what}; list those there are")


def place_of(error: BaseException) -> str:
    """Where it was raised, not what it says: messages quote what they were given."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
    return f"{type(error).__name__} at {where}"
