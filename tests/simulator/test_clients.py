"""Clients of others are served as they are, each in a process of its own."""

import os
import re
import shutil
import sys
import time

import pytest
import trio

import fastpush
from fastpush.simulator import open_simulator

from .wire import DEVICE_TOKEN

AIOAPNS = """
import asyncio, ssl, sys
from aioapns import APNs, NotificationRequest
from aioapns.connection import APNsProductionClientProtocol

async def main(port, ca_file, key_file, key_id, team_id):
    # It has no setting for the host.
    APNsProductionClientProtocol.APNS_SERVER = "127.0.0.1"
    APNsProductionClientProtocol.APNS_PORT = int(port)
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    client = APNs(key=open(key_file).read(), key_id=key_id, team_id=team_id, topic="com.example.app",
                  max_connections=1, ssl_context=context)
    def push(device_token):
        return client.send_notification(NotificationRequest(device_token, {"aps": {"alert": "x"}}))
    results = await asyncio.gather(*[push("ab" * 32) for _ in range(100)])
    print(sum(result.is_successful for result in results), (await push("xyz")).description)

asyncio.run(main(*sys.argv[1:]))
"""

NODE_APN = """
const apn = require('@parse/node-apn');
const [port, ca, key, keyId, teamId] = process.argv.slice(2);
const provider = new apn.Provider({ token: { key, keyId, teamId }, address: '127.0.0.1', port: Number(port),
                                    ca: [require('fs').readFileSync(ca)], production: true });
const push = (topic) => {
  const note = new apn.Notification({ topic, alert: 'x' });
  return provider.send(note, 'ab'.repeat(32));
};
(async () => {
  const sent = await Promise.all([...Array(100)].map(() => push('com.example.app')));
  const refused = await push('com.example.other');
  console.log(sent.filter((each) => each.sent.length).length, refused.failed[0].response.reason);
  provider.shutdown(() => process.exit(0));
})();
"""


async def run(*command):
    with trio.fail_after(30):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def with_key(simulator, *command):
    issued = simulator.issue_signing_key()
    path = simulator.signing_key_file(issued)
    return await run(
        *command, str(simulator.port), str(simulator.ca_file), path, issued.key_id, issued.team_id
    )


async def test_aioapns(simulator):
    """h2 with never-indexed authorization, `host` beside no :authority."""
    assert await with_key(simulator, sys.executable, "-c", AIOAPNS) == "100 BadDeviceToken\n"
    assert simulator.ledger.counts["accepted"] == 100


async def test_node_apn(tmp_path):
    node = shutil.which("node")
    if node is None or not os.environ.get("NODE_PATH"):
        pytest.skip("needs node, and NODE_PATH with @parse/node-apn")
    script = tmp_path / "push.js"
    script.write_text(NODE_APN)
    # It opens all streams before it has the server's SETTINGS, and takes a refused one for a failure.
    async with open_simulator(topics=("com.example.app",), probing=False) as simulator:
        assert await with_key(simulator, node, script) == "100 TopicDisallowed\n"


@pytest.mark.parametrize("protocol", [("--http2",), ("--http2-prior-knowledge", "--no-alpn")])
async def test_curl(simulator, key, protocol):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    authorization = key.authorization(time.time())[1].decode()
    answer = await run(
        curl, *protocol, "-sS", "--cacert", simulator.ca_file, "-w", "%{http_version} %{http_code}",
        "-H", f"authorization: {authorization}", "-H", "apns-topic: com.example.app",
        "-d", '{"aps":{"alert":"x"}}', f"https://localhost:{simulator.port}/3/device/{DEVICE_TOKEN}",
    )  # fmt: skip
    assert answer == "2 200"


async def test_h2load(tmp_path):
    """nghttp2 sends the HEADERS of many requests before their bodies, and Huffman codes all it can."""
    h2load = shutil.which("h2load")
    if h2load is None:
        pytest.skip("needs h2load, of nghttp2-client")
    # It does not wait for the server's SETTINGS before its first streams either.
    async with open_simulator(topics=("com.example.app",), probing=False, ledger="counts") as simulator:
        body = tmp_path / "body.json"
        body.write_text('{"aps":{"alert":"x"}}')
        authorization = simulator.signing_key().authorization(time.time())[1].decode()
        told = await run(
            h2load, "-n", "20000", "-c", "2", "-m", "500", "-d", body,
            "-H", f"authorization: {authorization}", "-H", "apns-topic: com.example.app",
            f"https://127.0.0.1:{simulator.port}/3/device/{DEVICE_TOKEN}",
        )  # fmt: skip
        assert re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", told)[1] == "20000"
        assert simulator.ledger.counts["accepted"] == 20_000


QUICK = [
    "collapse", "connection-cut", "connection-reset", "error-body-missing", "error-body-split", "goaway",
    "goaway-graceful", "goaway-never-closed", "goaway-then-close", "goaway-twice", "goaway-zero", "latency",
    "limit-flapping", "limit-lowered", "refused-streams", "refused-twice", "rejections-disconnect",
    "tls-alert", "unknown-reason", "unregistered",
]  # fmt: skip


@pytest.mark.parametrize("profile", [None, *QUICK])
async def test_fastpush_and_the_ledger_agree_whatever_goes_wrong(profile):
    """Nothing lost, nothing twice, every outcome true: 2,000 pushes through each fault."""
    faults = [] if profile is None else [profile]
    async with open_simulator(topics=("com.example.app",), faults=faults) as simulator:
        payload = fastpush.Payload(alert="Core switch down")
        notifications = [fastpush.Notification(f"{number:064x}", payload) for number in range(2_000)]
        outcomes = {}
        async with (
            fastpush.open_client(
                simulator.signing_key(),
                topic="com.example.app",
                host=simulator.host,
                port=simulator.port,
                ca_file=simulator.ca_file,
            ) as client,
            client.send_many(notifications) as responses,
        ):
            with trio.fail_after(20):
                async for response in responses:
                    outcomes[str(response.apns_id)] = response.outcome
        assert len(outcomes) == len(notifications)
        report = simulator.ledger.check(outcomes, outcomes)
        assert report.good, report


async def test_a_phone_gets_what_is_accepted_for_it():
    """Payload and header fields as they came; what is rejected, or for another one, does not reach it."""
    got = []
    async with open_simulator(topics=("com.example.app",)) as simulator:
        simulator.on_delivery("AB" * 32, got.append)
        payload = fastpush.Payload(alert="x")
        async with fastpush.open_client(
            simulator.signing_key(),
            topic="com.example.app",
            host=simulator.host,
            port=simulator.port,
            ca_file=simulator.ca_file,
        ) as client:
            for device_token, topic in [("ab" * 32, None), ("cd" * 32, None), ("ab" * 32, "com.example.b")]:
                notification = fastpush.Notification(
                    device_token, payload, topic=topic, collapse_id="c", priority=5
                )
                await client.send(notification)
        (delivery,) = got
        assert (delivery.device_token, delivery.collapse_id, delivery.priority) == ("ab" * 32, "c", 5)
        assert (delivery.push_type, delivery.topic) == ("alert", "com.example.app")
        assert delivery.payload == payload.encode()
        assert delivery.apns_id == simulator.ledger.seen[0].apns_id
