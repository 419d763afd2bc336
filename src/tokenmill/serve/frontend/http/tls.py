"""Files to a TLS context, with errors that name the setting at fault.

Exists because OpenSSL's own errors name neither file nor reason. It must not know sockets or configs.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from tokenmill.errors import ConfigError


def server_context(cert: str, key: str = "", client_ca: str = "") -> ssl.SSLContext:
    """Return a context for TLS 1.2 and 1.3. Raises ConfigError whose ``param`` is the setting at fault.

    ``cert``: the server's certificate and those above it (PEM). ``key``: its private key, unencrypted; empty:
    it is in ``cert`` too. ``client_ca``: clients must show a certificate that these authorities signed.
    """
    _check_file("tls_cert", cert, "CERTIFICATE-----")
    _check_file("tls_key", key or cert, "PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, cert, key or cert)
    if client_ca:
        _check_file("tls_client_ca", client_ca, "CERTIFICATE-----")
        try:
            context.load_verify_locations(cafile=client_ca)
        except ssl.SSLError as error:
            raise _fault("tls_client_ca", f"{client_ca} has a damaged certificate") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    def refuse_password() -> str:
        raise _fault(
            "tls_key", f"{key} is encrypted; store it without a password (openssl pkey -in ... -out ...)"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _fault("tls_key", f"{key} is not the key of the first certificate in {cert}") from error
        raise _fault("tls_cert", f"{cert} or the key {key} is damaged ({error.reason or error})") from error


def _check_file(param: str, path: str, mark: str) -> None:
    try:
        text = Path(path).read_text(encoding="latin-1")
    except OSError as error:
        raise _fault(param, f"cannot read {path}: {error.strerror}") from error
    if mark not in text:
        what = "certificate" if mark.startswith("CERT") else "private key"
        raise _fault(param, f"{path} holds no {what} in PEM format")


def _fault(param: str, message: str) -> ConfigError:
    return ConfigError(f"{param}: {message}", param=param)
