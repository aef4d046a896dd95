"""smtplib against a real server: TLS, login, verdicts, and mails as files."""

import contextlib
import email
import email.policy
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from app.alerting.mailer import FileMailer, Mailer, SmtpMailer, connect_mailer
from app.alerting.message import Mail
from app.errors import MailServerError, RecipientRefusedError, UnrecordedError
from sandbox.certificate import Certificate, self_signed
from sandbox.mailbox import Mailbox
from tests.support import make_settings


@pytest.fixture
def mail() -> Mail:
    content = (
        "From: CryptoTicker <alerts@cryptoticker.example.com>\r\n"
        "To: alice@example.com\r\n"
        "Subject: BTC rose above 100,000 USD\r\n"
        "\r\n"
        ".a line that begins with a dot\r\n"
    )
    identity = "<0123456789abcdef@cryptoticker.example.com>"
    return Mail("alerts@cryptoticker.example.com", "alice@example.com", identity, content.encode())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def trusting(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process trust the test's certificate, the way OpenSSL lets any user do it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))


@pytest.fixture
def closing() -> Iterator[list[Mailer]]:
    made: list[Mailer] = []
    yield made
    for mailer in made:
        mailer.close()


def secure_mailbox(certificate: Certificate, security: str, login: tuple[str, str] | None = None) -> Mailbox:
    if security == "starttls":
        return Mailbox(require_login=login, starttls=certificate.context)
    return Mailbox(require_login=login, implicit_tls=certificate.context)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_mail_goes_through_tls_with_a_login(
    certificate: Certificate, trusting: None, mail: Mail, closing: list[Mailer], security: str
) -> None:
    with secure_mailbox(certificate, security, ("ticker", "secret")) as mailbox:
        settings = make_settings(
            smtp_host="localhost",
            smtp_port=mailbox.port,
            smtp_security=security,
            smtp_user="ticker",
            smtp_password="secret",
        )
        closing.append(connect_mailer(settings))
        closing[0].deliver(mail)
        assert [kept.message["Subject"] for kept in mailbox.mails] == ["BTC rose above 100,000 USD"]


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_certificate_that_nobody_vouches_for_gets_no_login_and_no_mail(
    certificate: Certificate, mail: Mail, security: str
) -> None:
    with secure_mailbox(certificate, security) as mailbox:
        settings = make_settings(smtp_host="localhost", smtp_port=mailbox.port, smtp_security=security)
        with pytest.raises(MailServerError, match="certificate"):
            SmtpMailer(settings).deliver(mail)
        assert mailbox.mails == []


def test_without_starttls_on_offer_nothing_is_sent_in_the_open(mailbox: Mailbox, mail: Mail) -> None:
    settings = make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port, smtp_security="starttls")
    with pytest.raises(MailServerError, match="STARTTLS"):
        SmtpMailer(settings).deliver(mail)
    assert mailbox.mails == []


def test_a_refused_login_is_the_servers_trouble_and_never_shows_the_password(
    certificate: Certificate, trusting: None, mail: Mail
) -> None:
    with Mailbox(require_login=("ticker", "right"), starttls=certificate.context) as mailbox:
        settings = make_settings(
            smtp_host="localhost", smtp_port=mailbox.port, smtp_security="starttls", smtp_user="ticker",
            smtp_password="wr0ng-s3cret",
        )  # fmt: skip
        with pytest.raises(MailServerError, match="SMTP_USER and SMTP_PASSWORD") as raised:
            SmtpMailer(settings).deliver(mail)
        assert "wr0ng-s3cret" not in str(raised.value)


def test_nobody_there_is_the_servers_trouble(mail: Mail) -> None:
    with Mailbox() as gone:
        port = gone.port
    with pytest.raises(MailServerError, match="can't be reached"):
        SmtpMailer(make_settings(smtp_host="127.0.0.1", smtp_port=port)).deliver(mail)


@contextmanager
def dripping(first: bytes, line: bytes, last: bytes) -> Iterator[int]:
    """A server that says `first`, then ever more of its first answer; in the end, which nobody should await, `last`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(first)
                for _ in range(200):
                    connection.sendall(line)
                    threading.Event().wait(0.02)
                connection.sendall(last)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(("first", "line"), [(b"", b"220-more\r\n"), (b"220 ", b"x")])
def test_an_answer_that_never_ends_is_given_up(mail: Mail, first: bytes, line: bytes) -> None:
    """Invariant 7: each part comes in time, the whole never does."""
    with dripping(first, line, b"\r\n220 done\r\n") as port:
        settings = make_settings(smtp_host="127.0.0.1", smtp_port=port)
        with pytest.raises(MailServerError, match="the answer does not end"):
            SmtpMailer(settings, step_seconds=0.3).deliver(mail)


def test_an_answer_of_endless_size_is_given_up(mail: Mail) -> None:
    with dripping(b"", b"220-more\r\n" * 1000, b"220 done\r\n") as port:
        settings = make_settings(smtp_host="127.0.0.1", smtp_port=port)
        with pytest.raises(MailServerError, match="the answer does not end"):
            SmtpMailer(settings).deliver(mail)


def test_the_last_word_before_the_text_can_keep_it_back(mailbox: Mailbox, mail: Mail, closing: list[Mailer]) -> None:
    mailer = SmtpMailer(make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port))
    closing.append(mailer)

    def refuse() -> None:
        raise UnrecordedError("not yet")

    with pytest.raises(UnrecordedError):
        mailer.deliver(mail, before_text=refuse)
    assert mailbox.mails == []
    mailer.deliver(mail)
    assert len(mailbox.mails) == 1


def test_a_line_that_begins_with_a_dot_arrives_as_it_was(mailbox: Mailbox, mail: Mail, closing: list[Mailer]) -> None:
    closing.append(SmtpMailer(make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port)))
    closing[0].deliver(mail)
    assert mailbox.mails[0].message.get_payload() == ".a line that begins with a dot\r\n"


def test_an_address_outside_ascii_goes_as_utf8(mailbox: Mailbox, mail: Mail, closing: list[Mailer]) -> None:
    closing.append(SmtpMailer(make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port)))
    content = mail.content.replace(b"alice", "jörg".encode())
    closing[0].deliver(replace(mail, recipient="jörg@example.com", content=content))
    assert mailbox.mails[0].recipient == "jörg@example.com"
    assert mailbox.mails[0].message["To"] == "jörg@example.com"


def test_a_refused_recipient_leaves_the_connection_usable(mailbox: Mailbox, mail: Mail, closing: list[Mailer]) -> None:
    mailbox.refuse("alice@example.com", "550 5.1.1 no such user", times=1)
    mailer = SmtpMailer(make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port))
    closing.append(mailer)
    with pytest.raises(RecipientRefusedError, match=r"550 5\.1\.1 no such user"):
        mailer.deliver(mail)
    mailer.deliver(mail)
    assert (len(mailbox.mails), mailbox.connections) == (1, 1)


def test_without_a_mail_server_mails_become_files(tmp_path: Path, mail: Mail) -> None:
    mailer = connect_mailer(make_settings(data_dir=tmp_path))
    mailer.deliver(mail)
    mailer.deliver(mail)
    (file,) = (tmp_path / "outbox").iterdir()
    assert file.name == "0123456789abcdef.eml"
    read = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert (read["To"], read["Subject"]) == ("alice@example.com", "BTC rose above 100,000 USD")


def test_a_folder_that_cannot_be_written_keeps_the_mail_waiting(tmp_path: Path, mail: Mail) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    with pytest.raises(MailServerError, match="could not write"):
        FileMailer(tmp_path / "outbox").deliver(mail)
