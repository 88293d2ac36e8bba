"""One push, checked when made; and what became of it."""

import pytest

from fastpush import InvalidNotification, Notification, Payload, Response

DEVICE_TOKEN = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"


def test_a_device_token_is_kept_in_lower_case_without_blanks_and_brackets():
    shown = f"<{DEVICE_TOKEN[:8]} {DEVICE_TOKEN[8:]}>".upper()
    for given in (DEVICE_TOKEN, shown, shown.encode()):
        assert Notification(given, Payload()).device_token == DEVICE_TOKEN


def test_a_payload_may_have_4096_bytes_and_no_more():
    fitting = Payload(alert="x" * (4096 - len(Payload(alert="").encode())))
    assert Notification(DEVICE_TOKEN, fitting).payload is fitting
    with pytest.raises(InvalidNotification, match=r"is 4097 bytes of JSON; the limit .* is 4096"):
        Notification(DEVICE_TOKEN, Payload(alert=fitting.alert + "x"))


def test_a_response_shows_no_whole_device_token():
    response = Response(Notification(DEVICE_TOKEN, Payload()), "rejected", status=410, reason="Unregistered")
    assert repr(response) == "<Response rejected 410 Unregistered, to 00fc…e8f0>"
