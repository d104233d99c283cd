"""What the clients of stores raise where credentials are none, unknown or not enough."""

from __future__ import annotations

import errno

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from sleepfm.signals.denied import is_denied
from sleepfm.signals.files import DeniedError, answering, location


def of_s3(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "ListObjectsV2")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code: int) -> None:
        self.code = code


@pytest.mark.parametrize(
    ("error", "denied"),
    [
        (of_s3("AccessDenied", 403), True),
        (of_s3("InvalidToken", 400), True),
        (caused(OSError(errno.EINVAL, "The provided token is malformed"), of_s3("InvalidToken", 400)), True),
        (NoCredentialsError(), True),
        (PermissionError("Access Denied"), True),
        (HttpError(401), True),
        (OSError("Forbidden: sleep/shards\nno"), True),
        (of_s3("NoSuchBucket", 404), False),
        (of_s3("SlowDown", 503), False),
        (HttpError(500), False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (FileNotFoundError("x"), False),
    ],
)
def test_what_asking_again_does_not_help_is_told_from_what_it_may(error: Exception, denied: bool) -> None:
    assert is_denied(error) is denied
    with pytest.raises(OSError) as caught, answering(location("memory://x")):
        raise error
    assert isinstance(caught.value, DeniedError) is denied
