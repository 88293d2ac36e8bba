"""A small SMTP server under trio, with STARTTLS or without, that says and refuses what it is told to."""

import ssl

import trio


class Mailbox:
    def __init__(self, context=None, *, refuses=(), greets="220 mail.test"):
        self.context, self.refuses, self.greets = context, refuses, greets
        self.mails = []  # (sender, recipients, octets, over TLS)
        self.hellos = []

    async def serve(self, nursery):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, self._attend, [listener])
        self.port = listener.socket.getsockname()[1]
        return self

    async def _attend(self, stream):
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream):
        buffer = bytearray()
        tls, sender, recipients = False, None, []

        async def line():
            while b"\r\n" not in buffer:
                octets = await stream.receive_some()
                if not octets:
                    return None
                buffer.extend(octets)
            found, _, rest = bytes(buffer).partition(b"\r\n")
            buffer[:] = rest
            return found

        async def say(*lines):
            await stream.send_all("".join(f"{one}\r\n" for one in lines).encode())

        await say(self.greets)
        while (command := await line()) is not None:
            verb = command[:4].upper()
            if verb in (b"EHLO", b"HELO"):
                self.hellos.append(command[5:].decode())
                offers = ["250-mail.test"]
                if self.context is not None and not tls:
                    offers.append("250-STARTTLS")
                await say(*offers, "250 8BITMIME")
            elif verb == b"STAR":
                await say("220 go ahead")
                stream = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
                await stream.do_handshake()
                buffer.clear()
                tls = True
            elif verb == b"MAIL":
                sender = command[command.index(b"<") + 1 : command.index(b">")].decode()
                await say("250 ok")
            elif verb == b"RCPT":
                recipient = command[command.index(b"<") + 1 : command.index(b">")].decode()
                if recipient in self.refuses:
                    await say("550 no such user")
                else:
                    recipients.append(recipient)
                    await say("250 ok")
            elif verb == b"DATA":
                await say("354 go on")
                octets = []
                while (text := await line()) != b".":
                    octets.append(text)
                self.mails.append((sender, recipients, b"\r\n".join(octets), tls))
                await say("250 2.0.0 queued as 4711")
            elif verb == b"QUIT":
                await say("221 bye")
                return
            else:
                await say("500 what?")
