"""A throw-away certificate for tests of TLS on 127.0.0.1."""

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme


class Certificate(NamedTuple):
    """`context` is for the server; clients that trust `authority`, a PEM file, trust it."""

    context: ssl.SSLContext
    authority: Path


def self_signed(folder: Path) -> Certificate:
    """Make one for localhost and 127.0.0.1, with its authority's PEM file in `folder`."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    pem = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(pem))
    return Certificate(context, pem)
