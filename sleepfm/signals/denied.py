"""Whether a store has refused for who asks: then asking again does not help."""

from __future__ import annotations

# What clients of S3, Google and Azure raise where they have no credentials, or cannot renew them.
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
)
# S3's codes of credentials that it does not know, with whatever status.
_NOT_KNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired")


def is_denied(error: BaseException) -> bool:
    """Whether a store, or the client of one, says that these credentials are none or do not allow what was asked."""
    for each in (error, error.__cause__):
        answer = getattr(each, "response", None)  # of S3
        said = answer if isinstance(answer, dict) else {}
        status = said.get("ResponseMetadata", {}).get("HTTPStatusCode") or next(
            (value for name in ("status_code", "status", "code") if isinstance(value := getattr(each, name, None), int)), 0
        )
        if (
            isinstance(each, PermissionError)
            or status in (401, 403)
            or type(each).__name__ in _NO_CREDENTIALS
            or said.get("Error", {}).get("Code") in _NOT_KNOWN
            or str(each).startswith("Forbidden: ")  # of Google
        ):
            return True
    return False
