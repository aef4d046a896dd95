"""A throw-away certificate for tests of TLS on 127.0.0.1."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """`context` is for the server; clients that trust `authority`, a PEM file, trust it."""

    context: ssl.SSLContext
    authority: Path


def self_signed(folder: Path) -> Certificate:
    """Make one for localhost and 127.0.0.1 in `folder`, valid for a day. Needs the openssl command."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    about = ["-days", "1", "-subj", "/CN=localhost", "-addext", names]
    subprocess.run([*command, *files, *about], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return Certificate(context, certificate)
