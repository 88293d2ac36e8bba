"""A server that is told of dead device tokens: signed, in order, again and again until it has them."""

import json
from itertools import pairwise

import httpx2
import pytest
import trio
import trio.testing

from fastpush.gateway import webhooks
from fastpush.gateway.devices.webhook import DeviceWebhook
from fastpush.gateway.http import open_listener, serve
from fastpush.gateway.signatures import verify
from fastpush.gateway.webhooks import Backoff, NotDelivered, Webhook, open_webhook_sender
from tests.clocks import story_clock
from tests.gateway.registry_house import APP, NOW, Clock, open_house, token

SECRET = b"s" * 32
URL = "https://backend.example.com/hook"
HOOK = Webhook(URL, SECRET)


@pytest.fixture
def clock():
    return story_clock()


class Backend:
    """Answers as told, then with 204; keeps what it was sent."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self._came = trio.Event()

    async def __call__(self, request):
        self.requests.append((trio.current_time(), request))
        self._came.set()
        self._came = trio.Event()
        if not self.answers:
            return httpx2.Response(204)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await trio.sleep_forever()
        return answer

    async def wait_for(self, count):
        while len(self.requests) < count:
            await self._came.wait()

    @property
    def hosts(self):
        return {request.url.host for _, request in self.requests}

    def messages(self):
        """The events of each request, whose signature is looked at."""
        found = []
        for _, request in self.requests:
            headers = request.headers
            stamp = int(headers["webhook-timestamp"])
            assert verify(
                [SECRET], headers["webhook-signature"], headers["webhook-id"], stamp, request.content
            )
            body = json.loads(request.content)
            assert body["type"] == "device.dead"
            events = [int(event["device_token"], 16) for event in body["data"]["events"]]
            found.append((headers["webhook-id"], events))
        return found


async def bury(house, *numbers):
    for number in numbers:
        await house.register(number)
    now = house.clock.now
    house.devices.report(APP, [(token(n), 410, "Unregistered", int(now * 1_000), now) for n in numbers])
    await house.devices.settle()


class telling:
    """The webhook at work until the block ends."""

    def __init__(self, house, backend):
        self.house, self.backend = house, backend

    async def __aenter__(self):
        self._opened = open_webhook_sender(
            clock=self.house.clock, transport=httpx2.MockTransport(self.backend)
        )
        sender = await self._opened.__aenter__()
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        webhook = DeviceWebhook(self.house.storage, self.house.devices, sender, HOOK)
        await self._nursery.start(webhook.run)
        return webhook

    async def __aexit__(self, *error):
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(*error)
        await self._opened.__aexit__(*error)


async def test_each_dead_device_token_is_told_once(tmp_path, clock):
    async with open_house(tmp_path) as house:
        clock.holds.append(lambda: house.storage.pending_rows > 0)
        await bury(house, 1, 2)
        backend = Backend()
        async with telling(house, backend):
            await backend.wait_for(1)
            await bury(house, 3)
            await backend.wait_for(2)
            await bury(house, 4)
            await backend.wait_for(3)
    assert backend.messages() == [
        ("device-events-0-2", [1, 2]),
        ("device-events-2-3", [3]),
        ("device-events-3-4", [4]),
    ]
    async with open_house(tmp_path) as house:
        backend = Backend()
        await bury(house, 5)
        async with telling(house, backend):
            await backend.wait_for(1)
        assert backend.messages()[-1] == ("device-events-4-5", [5])


async def test_what_fails_is_told_again_under_the_same_id(tmp_path, clock):
    """Server errors, a redirect, no connection, no answer: nothing of it counts, and Retry-After is kept."""
    async with open_house(tmp_path) as house:
        clock.holds.append(lambda: house.storage.pending_rows > 0)
        await bury(house, 1)
        backend = Backend(
            httpx2.Response(500, text="secret words of the other side"),
            httpx2.Response(302, headers={"Location": "https://elsewhere.example.com/"}),
            httpx2.ConnectError("refused"),
            httpx2.Response(503, headers={"Retry-After": "400"}),
            None,
        )
        async with telling(house, backend) as webhook:
            await backend.wait_for(5)
            assert webhook.statistics().failures == 4
            house.clock.now += 1_000
            await bury(house, 2)  # which does not come into the message that is under way
            await backend.wait_for(7)
            assert webhook.statistics().failures == 0
        assert backend.messages() == [("device-events-0-1", [1])] * 6 + [("device-events-1-2", [2])]
        assert backend.hosts == {"backend.example.com"}, "nobody else is told"
        times = [at for at, _ in backend.requests]
        waits = [later - sooner for sooner, later in pairwise(times)]
        assert 4 <= waits[0] <= 7
        assert 8 <= waits[1] <= 13
        assert 16 <= waits[2] <= 25
        assert waits[3] >= 400
        assert waits[4] >= webhooks.POST_WITHIN
        signed_at = [request.headers["webhook-timestamp"] for _, request in backend.requests]
        assert signed_at[0] == str(int(NOW))
        assert signed_at[5] == str(int(NOW) + 1_000), "each sending is signed anew"


async def test_a_message_that_was_under_way_comes_again_as_it_was(tmp_path, clock):
    """Killed between the answer and the note of it: the same id, the same events, none left out."""
    wall = Clock()
    async with open_house(tmp_path, wall) as house:
        clock.holds.append(lambda: house.storage.pending_rows > 0)
        await bury(house, 1, 2)
        backend = Backend(None)
        async with telling(house, backend):
            await backend.wait_for(1)
            await bury(house, 3)
        first = backend.messages()
    async with open_house(tmp_path, wall) as house:
        backend = Backend()
        async with telling(house, backend):
            await backend.wait_for(2)
        assert first == backend.messages()[:1] == [("device-events-0-2", [1, 2])]
        assert backend.messages()[1:] == [("device-events-2-3", [3])]


async def test_a_failure_is_told_without_the_other_sides_words(clock):
    for answer, said in (
        (httpx2.Response(500, text="secret"), "it answered 500"),
        (httpx2.Response(307, headers={"Location": "https://secret/"}), "a redirect, which is not followed"),
        (None, "no answer within 15 s"),
        (httpx2.ConnectError("refused"), "ConnectError: refused"),
    ):
        async with open_webhook_sender(transport=httpx2.MockTransport(Backend(answer))) as sender:
            with pytest.raises(NotDelivered, match=said) as caught:
                await sender.post(HOOK, "m", b"{}")
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "waits"),
    [("30", 30.0), ("999999", 3_600.0), ("-1", None), ("soon", None), ("٣", None), ("", None)],
)
async def test_retry_after_is_read_with_care(asked, waits):
    answer = httpx2.Response(429, headers=[(b"Retry-After", asked.encode())])
    async with open_webhook_sender(transport=httpx2.MockTransport(Backend(answer))) as sender:
        with pytest.raises(NotDelivered) as caught:
            await sender.post(HOOK, "m", b"{}")
    assert caught.value.retry_after == waits


def test_waits_grow_and_begin_anew():
    backoff, failure = Backoff(1.0, 8.0), NotDelivered("no")
    for wanted in (1, 2, 4, 8, 8):
        assert 0.8 * wanted <= backoff.after(failure) <= 1.2 * wanted
    assert backoff.after(NotDelivered("no", 100.0)) == 100.0
    backoff.reset()
    assert backoff.after(failure) <= 1.2


def test_where_to_and_its_secret_are_not_shown():
    assert (
        repr(Webhook("https://user:pass@backend.example.com/hook?token=x", SECRET))
        == "<Webhook to backend.example.com>"
    )


async def test_over_a_real_socket():
    taken = []

    async def backend(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind.endswith("shutdown"):
                    return
        body = (await receive())["body"]
        headers = dict(scope["headers"])
        taken.append((headers[b"webhook-id"], headers[b"webhook-signature"], body))
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    listener, stop = open_listener("127.0.0.1:0"), trio.Event()
    async with trio.open_nursery() as nursery, open_webhook_sender(clock=Clock()) as sender:

        async def run(task_status):
            await serve(backend, [listener], shutdown_trigger=stop.wait, task_status=task_status)

        await nursery.start(run)
        with trio.fail_after(10):
            for number in range(3):
                await sender.post(
                    Webhook(f"http://127.0.0.1:{listener.port}/hook", SECRET), f"m{number}", b'{"a":1}'
                )
        stop.set()
    assert [(message_id, body) for message_id, _, body in taken] == [
        (b"m%d" % number, b'{"a":1}') for number in range(3)
    ]
    assert verify([SECRET], taken[0][1].decode(), "m0", int(NOW), b'{"a":1}')
