"""smtplib against a real server: TLS, login, verdicts, and mails as files."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from app.alerting.mailer import FileMailer, Mailer, SmtpMailer, connect_mailer
from app.errors import MailServerError, RecipientRefusedError
from sandbox.certificate import Certificate, self_signed
from sandbox.mailbox import Mailbox
from tests.support import make_settings


@pytest.fixture
def message() -> EmailMessage:
    made = EmailMessage()
    made["From"] = "CryptoTicker <alerts@cryptoticker.example.com>"
    made["To"] = "alice@example.com"
    made["Subject"] = "BTC rose above 100,000 USD"
    made["Message-ID"] = "<0123456789abcdef@cryptoticker.example.com>"
    made.set_content("text")
    return made


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
    certificate: Certificate, trusting: None, message: EmailMessage, closing: list[Mailer], security: str
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
        closing[0].deliver(message)
        assert [mail.message["Subject"] for mail in mailbox.mails] == ["BTC rose above 100,000 USD"]


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_certificate_that_nobody_vouches_for_gets_no_login_and_no_mail(
    certificate: Certificate, message: EmailMessage, security: str
) -> None:
    with secure_mailbox(certificate, security) as mailbox:
        settings = make_settings(smtp_host="localhost", smtp_port=mailbox.port, smtp_security=security)
        with pytest.raises(MailServerError, match="certificate"):
            SmtpMailer(settings).deliver(message)
        assert mailbox.mails == []


def test_without_starttls_on_offer_nothing_is_sent_in_the_open(mailbox: Mailbox, message: EmailMessage) -> None:
    settings = make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port, smtp_security="starttls")
    with pytest.raises(MailServerError, match="STARTTLS"):
        SmtpMailer(settings).deliver(message)
    assert mailbox.mails == []


def test_a_refused_login_is_the_servers_trouble_and_never_shows_the_password(
    certificate: Certificate, trusting: None, message: EmailMessage
) -> None:
    with Mailbox(require_login=("ticker", "right"), starttls=certificate.context) as mailbox:
        settings = make_settings(
            smtp_host="localhost", smtp_port=mailbox.port, smtp_security="starttls", smtp_user="ticker",
            smtp_password="wr0ng-s3cret",
        )  # fmt: skip
        with pytest.raises(MailServerError, match="SMTP_USER and SMTP_PASSWORD") as raised:
            SmtpMailer(settings).deliver(message)
        assert "wr0ng-s3cret" not in str(raised.value)


def test_nobody_there_is_the_servers_trouble(message: EmailMessage) -> None:
    with Mailbox() as gone:
        port = gone.port
    with pytest.raises(MailServerError, match="can't be reached"):
        SmtpMailer(make_settings(smtp_host="127.0.0.1", smtp_port=port)).deliver(message)


def test_a_refused_recipient_leaves_the_connection_usable(
    mailbox: Mailbox, message: EmailMessage, closing: list[Mailer]
) -> None:
    mailbox.refuse("alice@example.com", "550 5.1.1 no such user", times=1)
    mailer = SmtpMailer(make_settings(smtp_host=mailbox.host, smtp_port=mailbox.port))
    closing.append(mailer)
    with pytest.raises(RecipientRefusedError, match=r"550 5\.1\.1 no such user"):
        mailer.deliver(message)
    mailer.deliver(message)
    assert (len(mailbox.mails), mailbox.connections) == (1, 1)


def test_without_a_mail_server_mails_become_files(tmp_path: Path, message: EmailMessage) -> None:
    mailer = connect_mailer(make_settings(data_dir=tmp_path))
    mailer.deliver(message)
    mailer.deliver(message)
    (file,) = (tmp_path / "outbox").iterdir()
    assert file.name == "0123456789abcdef.eml"
    read = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert (read["To"], read["Subject"]) == ("alice@example.com", "BTC rose above 100,000 USD")


def test_a_folder_that_cannot_be_written_keeps_the_mail_waiting(tmp_path: Path, message: EmailMessage) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    with pytest.raises(MailServerError, match="could not write"):
        FileMailer(tmp_path / "outbox").deliver(message)
