from __future__ import annotations

import asyncio
import ssl
import warnings
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from tests.serve.frontend.http.certificates import Certificates, make_certificates
from tests.serve.frontend.http.test_server import Handler, serve, until
from tests.serve.frontend.http_client import read_answer, request_bytes

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.tls import server_context


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def client_context(files: Certificates, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    if name:
        context.load_cert_chain(files.path(f"{name}.pem"), files.path(f"{name}.key"))
    return context


@asynccontextmanager
async def connect(server, context: ssl.SSLContext):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.transport.abort()


async def ask(server, context: ssl.SSLContext) -> int:
    async with connect(server, context) as (reader, writer):
        writer.write(request_bytes("GET", "/a"))
        return (await read_answer(reader)).status


@pytest.fixture
def tls(files: Certificates) -> ssl.SSLContext:
    return server_context(files.path("server.pem"), files.path("server.key"))


async def test_requests_and_streams_over_tls(files, tls):
    handler = Handler()
    async with serve(handler, tls=tls) as server, connect(server, client_context(files)) as (reader, writer):
        writer.write(request_bytes("POST", "/a", b"x" * 300_000) + request_bytes("GET", "/stream"))
        assert len((await read_answer(reader)).body) == len("/a ") + 300_000
        handler.source.sink.write(b" second")
        handler.source.sink.end()
        assert (await read_answer(reader)).body == b"first second"
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_key_and_certificate_in_one_file(files):
    tls = server_context(files.path("both.pem"))
    async with (
        serve(Handler(), tls=tls) as server,
        connect(server, client_context(files)) as (reader, writer),
    ):
        writer.write(request_bytes("GET", "/a"))
        assert (await read_answer(reader)).status == 200


async def test_refusals_over_tls_are_read_and_the_connection_ends(files, tls):
    async with (
        serve(Handler(), tls=tls) as server,
        connect(server, client_context(files)) as (reader, writer),
    ):
        writer.write(b"rubbish\r\n\r\n")
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await reader.read() == b""


async def test_a_client_that_leaves_over_tls_cancels_its_request(files, tls):
    handler = Handler()
    async with serve(handler, tls=tls) as server:
        async with connect(server, client_context(files)) as (_, writer):
            writer.write(request_bytes("GET", "/wait"))
            await until(lambda: handler.requests)
        await until(lambda: handler.cancelled == 1)
        await until(lambda: server.connection_count == 0)


async def test_a_reader_that_does_not_read_over_tls_is_dropped(files, tls):
    handler = Handler()
    async with (
        serve(handler, tls=tls, write_timeout_s=0.2) as server,
        connect(server, client_context(files)) as (reader, writer),
    ):
        writer.write(request_bytes("GET", "/stream"))
        await reader.readuntil(b"first")
        reader._transport.pause_reading()
        heard = handler.source.heard
        while "gone" not in heard:
            if not heard or heard[-1] == "resume":  # what was under way to the client went on for a while
                handler.source.sink.write(b"x" * 50_000)
            await asyncio.sleep(0.001)
        assert heard[-2:] == ["pause", "gone"]


async def test_old_protocols_are_refused(files, tls):
    context = client_context(files)
    with warnings.catch_warnings(action="ignore"):  # that it is old is the point
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    async with serve(Handler(), tls=tls) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        assert await ask(server, client_context(files)) == 200


async def test_plain_http_to_a_tls_port_ends(files, tls):
    async with serve(Handler(), tls=tls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes("GET", "/a"))
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert b"HTTP/1.1 200" not in await reader.read()
        writer.transport.abort()


async def test_clients_must_show_a_certificate_where_an_authority_is_named(files):
    tls = server_context(files.path("server.pem"), files.path("server.key"), files.path("ca.pem"))
    async with serve(Handler(), tls=tls) as server:
        assert await ask(server, client_context(files, "client")) == 200
        for name in ("", "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(server, client_context(files, name))
        await until(lambda: server.connection_count == 0)


async def test_a_drain_ends_idle_tls_connections(files, tls):
    async with (
        serve(Handler(), tls=tls) as server,
        connect(server, client_context(files)) as (reader, writer),
    ):
        writer.write(request_bytes("GET", "/a"))
        assert (await read_answer(reader)).status == 200
        closing = asyncio.create_task(server.close(5.0))
        assert await reader.read() == b""
        writer.close()
        await closing


async def test_aiohttp_over_tls(files, tls):
    async with (
        serve(Handler(), tls=tls) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context(files))) as session,
        session.post(f"https://localhost:{server.port}/a", data=b"x") as answer,
    ):
        assert await answer.read() == b"/a x"


@pytest.mark.parametrize(
    ("names", "param", "message"),
    [
        (("none.pem", "server.key"), "tls_cert", "cannot read .*none.pem: No such file"),
        (("server.pem", "none.key"), "tls_key", "cannot read .*none.key: No such file"),
        (("server.key", "server.key"), "tls_cert", "holds no certificate in PEM format"),
        (("server.pem", "server.pem"), "tls_key", "holds no private key in PEM format"),
        (("server.pem", ""), "tls_key", "holds no private key in PEM format"),
        (("server.pem", "client.key"), "tls_key", "client.key is not the key of the first certificate"),
        (
            ("server.pem", "encrypted.key"),
            "tls_key",
            "encrypted.key is encrypted; store it without a password",
        ),
        (("damaged.pem", "server.key"), "tls_cert", "damaged.pem or the key .* is damaged"),
        (("server.pem", "server.key", "none.pem"), "tls_client_ca", "cannot read .*none.pem"),
        (("server.pem", "server.key", "server.key"), "tls_client_ca", "holds no certificate"),
        (("server.pem", "server.key", "damaged.pem"), "tls_client_ca", "has a damaged certificate"),
    ],
)
def test_what_is_wrong_with_files_is_said_by_field(files, names, param, message):
    (files.folder / "damaged.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", encoding="ascii"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        server_context(*(files.path(name) if name else "" for name in names))
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")
