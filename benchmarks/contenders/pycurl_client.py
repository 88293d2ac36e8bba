"""pycurl as a contender: libcurl's multi interface, one connection, an easy handle to each stream."""

from __future__ import annotations

import uuid

import pycurl  # type: ignore[import-untyped,unused-ignore]

from benchmarks import data
from benchmarks.contenders.stopwatch import Contest


def main() -> None:
    contest = Contest()
    job = contest.job
    fields = [
        "authorization: bearer " + job.provider_token,
        "apns-topic: " + data.TOPIC,
        "apns-push-type: " + data.PUSH_TYPE,
        f"apns-priority: {data.PRIORITY}",
        f"apns-expiration: {data.EXPIRATION}",
        "content-type:",
        "accept:",
        "user-agent:",
    ]
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, 1)
    multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, job.streams)

    def easy() -> pycurl.Curl:
        handle = pycurl.Curl()
        handle.setopt(pycurl.CAINFO, job.ca_file)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_0)
        handle.setopt(pycurl.PIPEWAIT, 1)
        handle.setopt(pycurl.POST, 1)
        handle.setopt(pycurl.WRITEFUNCTION, len)
        return handle

    def start(handle: pycurl.Curl, index: int, device_token: str) -> None:
        handle.setopt(pycurl.URL, f"https://{job.host}:{job.port}/3/device/{device_token}")
        handle.setopt(pycurl.POSTFIELDS, data.body(index))
        handle.setopt(pycurl.HTTPHEADER, [*fields, f"apns-id: {uuid.uuid4()}"])
        multi.add_handle(handle)

    def send(device_tokens: list[str]) -> int:
        accepted = under_way = 0
        waiting = enumerate(device_tokens)
        idle = list(handles)
        while True:
            while idle and (push := next(waiting, None)):
                start(idle.pop(), *push)
                under_way += 1
            if not under_way:
                return accepted
            multi.perform()
            more = 1
            while more:
                more, good, bad = multi.info_read()
                for handle in good:
                    accepted += handle.getinfo(pycurl.RESPONSE_CODE) == 200
                for handle in (*good, *(failed[0] for failed in bad)):
                    multi.remove_handle(handle)
                    idle.append(handle)
                    under_way -= 1
            if under_way and not idle:
                multi.select(1.0)

    handles = [easy() for _ in range(job.streams)]
    accepted = send(contest.warm_up_tokens)
    with contest.measured():
        accepted += send(contest.device_tokens)
    contest.report(accepted, pycurl.version.split()[0] + ", " + pycurl.version.split()[1])


main()
