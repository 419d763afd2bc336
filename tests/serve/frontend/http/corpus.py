"""Requests as bytes: good ones with what they say, bad ones with the status they get."""

from __future__ import annotations

import gzip
import zlib

HOST = b"Host: h\r\n"
JSON = b'{"prompt": "' + b"words " * 20 + b'"}'


def head(line: bytes = b"GET / HTTP/1.1", headers: bytes = HOST) -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return head(line, HOST + headers) + body


def chunked(body: bytes, headers: bytes = b"") -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n" + headers, body)


def sized(body: bytes, headers: bytes = b"") -> bytes:
    return post(b"Content-Length: %d\r\n" % len(body) + headers, body)


GOOD: dict[str, tuple[bytes, str, str, bytes]] = {
    # name: (bytes, method, path, body)
    "get": (head(), "GET", "/", b""),
    "escapes and query": (head(b"GET /a%20b?x=%20 HTTP/1.1"), "GET", "/a b", b""),
    "no value": (head(headers=HOST + b"A:\r\n"), "GET", "/", b""),
    "blanks around a value": (head(headers=HOST + b"A: \t b \t\r\n"), "GET", "/", b""),
    "tab in a value": (head(headers=HOST + b"A: b\tc\r\n"), "GET", "/", b""),
    "bytes above ascii in a value": (head(headers=HOST + b"A: \xc3\xa9\r\n"), "GET", "/", b""),
    "all token characters": (head(headers=HOST + b"!#$%&'*+-.^_`|~aZ09: b\r\n"), "GET", "/", b""),
    "repeated header": (head(headers=HOST + b"A: 1\r\na: 2\r\n"), "GET", "/", b""),
    "host with port": (head(headers=b"Host: h:80\r\n"), "GET", "/", b""),
    "host in brackets": (head(headers=b"Host: [::1]:80\r\n"), "GET", "/", b""),
    "empty host": (head(headers=b"Host:\r\n"), "GET", "/", b""),
    "one line end before": (b"\r\n" + head(), "GET", "/", b""),
    "absolute target": (head(b"GET http://h:80/a?b HTTP/1.1"), "GET", "/a", b""),
    "absolute target without path": (head(b"GET HTTP://H?b HTTP/1.1"), "GET", "/", b""),
    "asterisk": (head(b"OPTIONS * HTTP/1.1"), "OPTIONS", "*", b""),
    "any method": (head(b"QUERY / HTTP/1.1"), "QUERY", "/", b""),
    "sized": (sized(JSON), "POST", "/", JSON),
    "empty body": (sized(b""), "POST", "/", b""),
    "length with zeros": (post(b"Content-Length: 0003\r\n", b"abc"), "POST", "/", b"abc"),
    "blanks after a length": (post(b"Content-Length: 3 \t\r\n", b"abc"), "POST", "/", b"abc"),
    "body of a get": (post(b"Content-Length: 3\r\n", b"abc", b"GET / HTTP/1.1"), "GET", "/", b"abc"),
    "body that looks like a request": (sized(head()), "POST", "/", head()),
    "chunks": (chunked(b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), "POST", "/", b"abc0123456789"),
    "chunks hold line ends": (chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), "POST", "/", b"\r\n\r\n"),
    "chunk sizes with zeros": (chunked(b"0000000000000003\r\nabc\r\n0\r\n\r\n"), "POST", "/", b"abc"),
    "no chunks": (chunked(b"0\r\n\r\n"), "POST", "/", b""),
    "long last chunk": (chunked(b"00000\r\n\r\n"), "POST", "/", b""),
    "chunk extensions": (
        chunked(b'3;a;b=c;d="e;f\\"g"\r\nabc\r\n0;last\r\n\r\n'),
        "POST",
        "/",
        b"abc",
    ),
    "trailers": (chunked(b"3\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n"), "POST", "/", b"abc"),
    "coding in capitals": (post(b"Transfer-Encoding:\tCHUNKED \r\n", b"0\r\n\r\n"), "POST", "/", b""),
    "gzip": (sized(gzip.compress(JSON, mtime=0), b"Content-Encoding: gzip\r\n"), "POST", "/", JSON),
    "gzip in chunks": (
        chunked(
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(JSON, mtime=0)), gzip.compress(JSON, mtime=0)),
            b"Content-Encoding: X-GZIP\r\n",
        ),
        "POST",
        "/",
        JSON,
    ),
    "gzip of two members": (
        sized(gzip.compress(b"ab", mtime=0) + gzip.compress(b"cd", mtime=0), b"Content-Encoding: gzip\r\n"),
        "POST",
        "/",
        b"abcd",
    ),
    "deflate": (sized(zlib.compress(JSON), b"Content-Encoding: deflate\r\n"), "POST", "/", JSON),
    "identity": (sized(JSON, b"Content-Encoding: identity\r\n"), "POST", "/", JSON),
    "an upgrade is not taken": (
        sized(b"abc", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"),
        "POST",
        "/",
        b"abc",
    ),
}

CLOSING: dict[str, bytes] = {
    "connection: close": head(headers=HOST + b"Connection: close\r\n"),
    "close among others": head(headers=HOST + b"Connection: foo, Close\r\n"),
    "http/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "http/1.0 with body": b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
}

BAD: dict[str, tuple[bytes, int]] = {
    # lengths
    "two equal lengths": (post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    "two lengths": (post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"), 400),
    "a list of lengths": (post(b"Content-Length: 3, 3\r\n", b"abc"), 400),
    "no length": (post(b"Content-Length:\r\n", b"abc"), 400),
    "two numbers": (post(b"Content-Length: 1 1\r\n", b"abcabcabcab"), 400),
    "length with plus": (post(b"Content-Length: +3\r\n", b"abc"), 400),
    "length with minus": (post(b"Content-Length: -3\r\n", b"abc"), 400),
    "hexadecimal length": (post(b"Content-Length: 0x3\r\n", b"abc"), 400),
    "length with underscore": (post(b"Content-Length: 1_0\r\n", b"abcabcabca"), 400),
    "length with a digit above ascii": (post(b"Content-Length: \xb2\r\n", b"ab"), 400),
    "length beyond 64 bits": (post(b"Content-Length: 18446744073709551619\r\n", b"abc"), 400),
    "length above the limit": (post(b"Content-Length: 99999999999\r\n"), 413),
    # codings
    "length and coding": (post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "coding and length": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n"), 400),
    "chunked, identity": (post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"), 400),
    "identity": (post(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), 400),
    "identity, chunked": (post(b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n"), 501),
    "gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "xchunked": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 400),
    "chunked twice": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    "coding twice": (post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    "coding then identity": (post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400),
    "comma first": (post(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n"), 400),
    "comma last": (post(b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n"), 400),
    "no coding": (post(b"Transfer-Encoding:\r\n", b"0\r\n\r\n"), 400),
    "coding with parameter": (post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), 400),
    "quoted coding": (post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), 400),
    "vertical tab before the coding": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 400),
    "form feed behind the coding": (post(b"Transfer-Encoding: chunked\x0c\r\n", b"0\r\n\r\n"), 400),
    "no-break space before the coding": (post(b"Transfer-Encoding: \xa0chunked\r\n", b"0\r\n\r\n"), 400),
    "kelvin sign in the coding": (post(b"Transfer-Encoding: chun\xe2\x84\xaaed\r\n", b"0\r\n\r\n"), 400),
    "coding in http/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # header lines
    "space before the colon": (post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 400),
    "tab before the colon": (post(b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"), 400),
    "control character before the name": (post(b"\x0bTransfer-Encoding: chunked\r\n"), 400),
    "folded": (head(headers=HOST + b"A: b\r\n c\r\n"), 400),
    "folded with tab": (head(headers=HOST + b"A: b\r\n\tc\r\n"), 400),
    "folded first line": (head(headers=b" Host: h\r\n" + HOST), 400),
    "folded coding": (post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    "nul in a value": (head(headers=HOST + b"A: b\0c\r\n"), 400),
    "control character in a value": (head(headers=HOST + b"A: b\x01c\r\n"), 400),
    "delete in a value": (head(headers=HOST + b"A: b\x7fc\r\n"), 400),
    "nul in a name": (head(headers=HOST + b"A\0: b\r\n"), 400),
    "byte above ascii in a name": (head(headers=HOST + b"\xe9: b\r\n"), 400),
    "no name": (head(headers=HOST + b": b\r\n"), 400),
    "no colon": (head(headers=HOST + b"Abc\r\n"), 400),
    "space in a name": (head(headers=HOST + b"A b: c\r\n"), 400),
    "parentheses in a name": (head(headers=HOST + b"A(b): c\r\n"), 400),
    # line ends
    "line feeds only": (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    "line feed after the request line": (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
    "line feed after a header": (b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", 400),
    "line feed as last line": (b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
    "line feed first": (b"\n" + head(), 400),
    "carriage return first": (b"\r" + head(), 400),
    "two line ends first": (b"\r\n\r\n" + head(), 400),
    "carriage return in a value": (head(headers=HOST + b"A: b\rc\r\n"), 400),
    "carriage return after a header": (b"GET / HTTP/1.1\r\nHost: h\rA: b\r\n\r\n", 400),
    "carriage return after the request line": (b"GET / HTTP/1.1\rHost: h\r\n\r\n", 400),
    "two carriage returns": (b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400),
    # request lines
    "http/0.9": (b"GET /\r\n\r\n", 400),
    "http/0.9, said": (head(b"GET / HTTP/0.9"), 505),
    "http/1.2": (head(b"GET / HTTP/1.2"), 505),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "http/1.10": (head(b"GET / HTTP/1.10"), 400),
    "http/01.1": (head(b"GET / HTTP/01.1"), 400),
    "http/1.1 in small letters": (head(b"GET / http/1.1"), 400),
    "another protocol": (head(b"SETUP / RTSP/1.0"), 400),
    "blank behind the version": (head(b"GET / HTTP/1.1 "), 400),
    "two blanks": (head(b"GET  / HTTP/1.1"), 400),
    "two blanks before the version": (head(b"GET /  HTTP/1.1"), 400),
    "blank in the target": (head(b"GET /a b HTTP/1.1"), 400),
    "tabs for blanks": (head(b"GET\t/\tHTTP/1.1"), 400),
    "blank first": (head(b" GET / HTTP/1.1"), 400),
    "no target": (head(b"GET HTTP/1.1"), 400),
    "nul in the target": (head(b"GET /\0 HTTP/1.1"), 400),
    "control character in the target": (head(b"GET /\x01 HTTP/1.1"), 400),
    "byte above ascii in the target": (head(b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "fragment": (head(b"GET /a#b HTTP/1.1"), 400),
    "relative target": (head(b"GET a HTTP/1.1"), 400),
    "asterisk for get": (head(b"GET * HTTP/1.1"), 400),
    "connect": (head(b"CONNECT h:80 HTTP/1.1"), 400),
    "at in the method": (head(b"GE@T / HTTP/1.1"), 400),
    "comma in the method": (head(b"G,T / HTTP/1.1"), 400),
    "no method": (head(b" / HTTP/1.1"), 400),
    "endless method": (head(b"A" * 200 + b" / HTTP/1.1"), 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    # hosts
    "no host": (head(headers=b""), 400),
    "two hosts": (head(headers=HOST + b"Host: other\r\n"), 400),
    "equal hosts": (head(headers=HOST + HOST), 400),
    "blank in the host": (head(headers=b"Host: a b\r\n"), 400),
    "hosts in a list": (head(headers=b"Host: a,b\r\n"), 400),
    "user in the host": (head(headers=b"Host: u@h\r\n"), 400),
    "path in the host": (head(headers=b"Host: h/x\r\n"), 400),
    "port with letters": (head(headers=b"Host: h:x\r\n"), 400),
    "absolute target of another host": (head(b"GET http://other/ HTTP/1.1"), 400),
    "absolute target with user": (head(b"GET http://u@h/ HTTP/1.1"), 400),
    "absolute target of another scheme": (head(b"GET ftp://h/ HTTP/1.1"), 400),
    "absolute target without host": (head(b"GET http:///a HTTP/1.1"), 400),
    # expectations
    "expect something else": (head(headers=HOST + b"Expect: tea\r\n"), 417),
    "expect too much": (post(b"Expect: 100-continue\r\nContent-Length: 99999999\r\n"), 413),
    # chunks
    "chunk size with 0x": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "negative chunk size": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with plus": (chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with underscore": (chunked(b"0_3\r\nabc\r\n0\r\n\r\n"), 400),
    "blank before a chunk size": (chunked(b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "blank behind a chunk size": (chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "no chunk size": (chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "rubbish for a chunk size": (chunked(b"zz\r\n"), 400),
    "17 digits of chunk size": (chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    "64 bits of chunk size": (chunked(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 413),
    "endless zeros": (chunked(b"0" * 2000 + b"3\r\nabc\r\n0\r\n\r\n"), 400),
    "line feed behind a chunk size": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "line feed behind a chunk": (chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "nothing behind a chunk": (chunked(b"3\r\nabc0\r\n\r\n"), 400),
    "carriage return behind a chunk": (chunked(b"3\r\nabc\rX0\r\n\r\n"), 400),
    "chunk longer than said": (chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "extension without name": (chunked(b"3;\r\nabc\r\n0\r\n\r\n"), 400),
    "extension with line feed": (chunked(b"3;a\nabc\r\n0\r\n\r\n"), 400),
    "extension with carriage return": (chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400),
    "extension with nul": (chunked(b"3;a\0\r\nabc\r\n0\r\n\r\n"), 400),
    "extension over two lines": (chunked(b'3;a="b\r\nc"\r\nabc\r\n0\r\n\r\n'), 400),
    "blank before an extension": (chunked(b"3 ;a=b\r\nabc\r\n0\r\n\r\n"), 400),
    "line feed behind the last chunk": (chunked(b"3\r\nabc\r\n0\n\n"), 400),
    "line feed at the end": (chunked(b"3\r\nabc\r\n0\r\n\n"), 400),
    "trailer with line feed": (chunked(b"0\r\nA: b\n\r\n"), 400),
    "folded trailer": (chunked(b"0\r\nA: b\r\n c\r\n\r\n"), 400),
    "nul in a trailer": (chunked(b"0\r\nA: b\0\r\n\r\n"), 400),
    "trailer without colon": (chunked(b"0\r\nAb\r\n\r\n"), 400),
    "length in a trailer": (chunked(b"0\r\nContent-Length: 9\r\n\r\n"), 400),
    "coding in a trailer": (chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    "host in a trailer": (chunked(b"0\r\nHost: other\r\n\r\n"), 400),
    # compressed bodies
    "unknown content coding": (sized(b"abc", b"Content-Encoding: br\r\n"), 415),
    "two content codings": (sized(b"abc", b"Content-Encoding: gzip, gzip\r\n"), 415),
    "not gzip": (sized(b"abcdefghijklmnop", b"Content-Encoding: gzip\r\n"), 400),
    "half a gzip": (sized(gzip.compress(JSON, mtime=0)[:-5], b"Content-Encoding: gzip\r\n"), 400),
    "rubbish behind gzip": (
        sized(gzip.compress(JSON, mtime=0) + b"x" * 20, b"Content-Encoding: gzip\r\n"),
        400,
    ),
    "rubbish behind deflate": (sized(zlib.compress(JSON) + b"x", b"Content-Encoding: deflate\r\n"), 400),
}
