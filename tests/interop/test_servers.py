"""fastpush against HTTP/2 servers that others wrote: every push is accepted, and each server's count agrees.

Each has its own way: nginx ends every connection after 1,000 requests with GOAWAY and answers before it has
read the body; haproxy gives windows back on streams that are closed; Node and nghttpd are nghttp2 with
Huffman-coded, indexed answers; hypercorn is h2 on trio with small windows; nghttpd sends each body back.
"""

import pytest

import fastpush
from benchmarks import data, servers
from benchmarks.provider_token import SigningKeyFile

PUSHES = 20_000


@pytest.fixture
def start(tmp_path):
    """Start a server by name, or skip the test with the reason."""
    running = []

    def start(name, **options):
        directory = tmp_path / name
        directory.mkdir()
        context = servers.ALL[name](directory, **options)
        try:
            server = context.__enter__()
        except servers.NotInstalled as reason:
            pytest.skip(str(reason))
        running.append(context)
        return server

    yield start
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture
def client_for(tmp_path):
    key_file = SigningKeyFile(tmp_path / "AuthKey_ABC123DEFG.p8", seed=1)
    key = fastpush.SigningKey.from_file(key_file.path, key_id=data.KEY_ID, team_id=data.TEAM_ID)

    def open_client(server, max_connections):
        return fastpush.open_client(
            key,
            topic=data.TOPIC,
            host=server.host,
            port=server.port,
            ca_file=server.ca_file,
            max_connections=max_connections,
        )

    return open_client


def notifications(count):
    for index, device_token in enumerate(data.device_tokens(seed=1, count=count)):
        alert = fastpush.Alert(title=data.TITLE, body=data.alert_body(index))
        payload = fastpush.Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID)
        yield fastpush.Notification(device_token, payload, expiration=data.EXPIRATION)


async def send_all(client, count):
    """Send so many and return the device tokens of the accepted; any other outcome fails, with its reason."""
    accepted = []
    async with client.send_many(notifications(count)) as responses:
        async for response in responses:
            assert response.accepted, (response.outcome, response.status, response.reason, response.error)
            accepted.append(response.notification.device_token)
    return accepted


async def everything_arrives_once(start, client_for, name, max_connections, count=PUSHES, **options):
    server = start(name, **options)
    async with client_for(server, max_connections) as client:
        accepted = await send_all(client, count)
    assert len(accepted) == len(set(accepted)) == count
    tally = server.tally()
    assert tally.answered == count
    if tally.device_tokens is not None:
        assert tally.device_tokens == count
    if tally.body_octets is not None and name != "haproxy":
        assert tally.body_octets == count * data.BODY_OCTETS
    return tally


@pytest.mark.parametrize("max_connections", [1, 4])
async def test_haproxy(start, client_for, max_connections):
    tally = await everything_arrives_once(start, client_for, "haproxy", max_connections)
    # haproxy counts header fields as well.
    assert tally.body_octets > PUSHES * data.BODY_OCTETS


async def test_answers_without_apns_id(start, client_for):
    """A proxy may answer with the status alone; the response then carries the apns-id that was sent."""
    server = start("haproxy", apns_id=False)
    async with client_for(server, 1) as client:
        sent = fastpush.Notification(
            "ab" * 32, fastpush.Payload(alert="hello"), apns_id="123e4567-e89b-12d3-a456-4266554400a0"
        )
        response = await client.send(sent)
        assert response.accepted
        assert response.status == 200
        assert response.apns_id == "123e4567-e89b-12d3-a456-4266554400a0"
    assert server.tally().answered == 1


@pytest.mark.parametrize("max_connections", [1, 4])
async def test_node(start, client_for, max_connections):
    await everything_arrives_once(start, client_for, "node", max_connections)


@pytest.mark.parametrize("max_connections", [1, 4])
async def test_nghttpd_sends_each_body_back(start, client_for, max_connections):
    """A 200 with a body that is not empty is accepted all the same, and its window is given back."""
    await everything_arrives_once(start, client_for, "nghttpd", max_connections, count=2_000)


@pytest.mark.slow  # a new connection each 1,000 pushes, after the first few one a second
@pytest.mark.parametrize("max_connections", [1, 4])
async def test_nginx_goes_away_every_thousand_requests(start, client_for, max_connections):
    """RFC 9113 §6.8: what nginx did not process is sent again on the next connection, the rest is not."""
    await everything_arrives_once(start, client_for, "nginx", max_connections)


@pytest.mark.slow  # hypercorn takes about a millisecond for each
@pytest.mark.parametrize("max_connections", [1, 4])
async def test_hypercorn(start, client_for, max_connections):
    await everything_arrives_once(start, client_for, "hypercorn", max_connections)
