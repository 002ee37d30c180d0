"""What the errors of requests to a bucket mean, in one line; tests/test_bucket.py has a bucket."""

import pytest

from fqs_jax.runtime import buckets
from fqs_jax.runtime.errors import UserError


class HttpError(Exception):
    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@pytest.mark.parametrize(
    "error, expected",
    [
        (HttpError("Invalid Credentials, 401", 401), "gcloud auth application-default login"),
        (
            HttpError("Anonymous caller does not have storage.objects.create access", 401),
            "no credentials",
        ),
        (
            OSError("Forbidden: b/bucket/o\nxyz@p does not have storage.objects.create"),
            "no right to do",
        ),
        (
            ValueError("PERMISSION_DENIED: HTTP response code: 403 [source locations='x']"),
            "no right to",
        ),
        (ValueError("Your default credentials were not found. To set up"), "no credentials"),
        (ValueError("NOT_FOUND: HTTP 404: the bucket does not exist"), "no such bucket"),
        (TimeoutError(), "TimeoutError"),
        (OSError("two\nlines"), "two lines"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(error, expected):
    with pytest.raises(UserError) as refused, buckets.explained("write", "gs://bucket/W"):
        raise error
    message = str(refused.value)
    assert message.startswith("cannot write gs://bucket/W: ") and expected in message
    assert "\n" not in message
