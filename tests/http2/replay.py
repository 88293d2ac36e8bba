"""Tell a story's transcript again, with the server's octets cut elsewhere."""

from fastpush.http2 import LocalProtocolError, StreamEnded

TOLD = ("receive_data", "check_time", "connection_lost", "close")


def told(event):
    """An event as values that can be compared."""
    if not isinstance(event, StreamEnded):
        return (type(event).__name__, *event)
    return (
        "StreamEnded",
        event.stream_id,
        event.tag,
        event.status,
        event.processed,
        event.error_code,
        event.body,
        event.reason,
        event.fields,
    )


def replay(transcript, make_engine, pieces):
    """Run a transcript on a new engine; return the events it told, and the octets of each take.

    `pieces` is called with the number of each `receive_data` and its octets, and gives them in pieces.
    """
    engine, templates, template = None, [], None
    events, taken, number = [], [], 0
    for method, args in transcript:
        match method:
            case "begin":
                engine = make_engine(limits=args[0], first_stream_id=args[1])
                templates = []
            case "template":
                template = engine.template(*args)
                templates.append(template)
            case "use_template":
                template = templates[args[0]]
            case "send_request":
                try:
                    engine.send_request(template, *args)
                except LocalProtocolError as error:
                    events.append((type(error).__name__, str(error)))
            case "receive_data":
                octets, now = args
                for piece in pieces(number, octets):
                    events += map(told, engine.receive_data(piece, now))
                number += 1
            case "data_to_send":
                taken.append(engine.data_to_send())
            case _:
                result = getattr(engine, method)(*args)
                events += map(told, result) if method in TOLD else [(method, result)]
    return events, taken


def merged(transcript):
    """The same transcript, the server's octets in as few segments as its story allows.

    What the client takes in between is taken after them: only the network's timing differs.
    """
    found, takes = [], []
    for method, args in transcript:
        if method == "data_to_send":
            takes.append((method, args))
            continue
        if (
            method == "receive_data"
            and found
            and found[-1][0] == "receive_data"
            and found[-1][1][1] == args[1]
        ):
            found[-1] = ("receive_data", (found[-1][1][0] + args[0], args[1]))
            continue
        found += takes
        takes = []
        found.append((method, args))
    return found + takes
