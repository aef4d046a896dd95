"""The service's log on standard output: one line an event, as text or JSON, with the id of the request it is about."""

import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from app.config import Settings

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request under way; empty outside of one."""

ACCESS_LOGGER = "app.access"
TIME = "%Y-%m-%dT%H:%M:%S"
MILLISECONDS = "%s.%03dZ"
PART = r"[^\s\"'`<>()\[\]{},;:=|\\/@]"
ADDRESS = re.compile(rf"<?{PART}{{1,64}}@{PART}{{1,255}}\.{PART}{{1,63}}>?")
"""Wider than RFC 5321: whatever may be somebody's address is not for the log. Bounded, so that it stays linear."""


def set_up(settings: Settings) -> None:
    """Send everything from INFO on to standard output, in the form that LOG_FORMAT asks for."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    handler.addFilter(_tell_request)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger(ACCESS_LOGGER).setLevel(logging.INFO if settings.access_log else logging.WARNING)


class TextLines(logging.Formatter):
    """`time level logger [request id]: message`, in UTC; a traceback follows on lines of its own."""

    converter = staticmethod(time.gmtime)
    default_time_format = TIME
    default_msec_format = MILLISECONDS

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(tag)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line itself: whatever a message quotes, it can't begin another one."""
        about = getattr(record, "request_id", "")
        record.tag = f" [{about}]" if about else ""
        record.message = _one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one."""
        return without_addresses(super().format(record))


class JsonLines(JsonFormatter):
    """One object a line: `time, level, logger, message`, and where there is one `request_id` and `exc_info`."""

    converter = staticmethod(time.gmtime)
    default_time_format = TIME
    default_msec_format = MILLISECONDS

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # the latter: uvicorn's message once more, in colour
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """What is written, before it becomes JSON: quoting must not be able to hide an address."""
        return {name: without_addresses(value) if isinstance(value, str) else value for name, value in log_data.items()}


def without_addresses(text: str) -> str:
    """The text with `<address>` for each mail address: mail servers like to repeat whom they refuse."""
    return ADDRESS.sub("<address>", text) if "@" in text else text


def _one_line(text: str) -> str:
    text = text.rstrip()
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _tell_request(record: logging.LogRecord) -> bool:
    if current := request_id.get():
        record.request_id = current
    return True
