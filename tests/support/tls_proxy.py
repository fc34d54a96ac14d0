"""A process that puts TLS in front of a server without it, as for a managed Redis."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class TlsProxy:
    """Listens on `port`; `ca_file` holds its certificate."""

    port: int
    ca_file: Path


@contextmanager
def tls_in_front_of(port: int, folder: Path) -> Iterator[TlsProxy]:
    """Accept TLS on a free port of 127.0.0.1 and pass the plain bytes on to `port`."""
    authority = trustme.CA()
    ca_file, own_file = folder / "ca.pem", folder / "own.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(own_file))
    argv = [sys.executable, __file__, str(port), str(own_file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield TlsProxy(int(process.stdout.readline()), ca_file)
        finally:
            process.kill()


async def serve(port: int, own_file: str) -> None:
    """Accept connections for ever; print the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own_file)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, their_writer), _copy(their_reader, writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # a disconnect of one side ends both
        while some := await reader.read(1 << 16):
            writer.write(some)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
