import smtplib
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage

import pytest

from sandbox.certificate import Certificate, self_signed
from sandbox.mailbox import Mailbox, MailboxTimeoutError


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


def mail(subject: str = "BTC above 101,000", *recipients: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "ticker@example.com"
    message["To"] = ", ".join(recipients or ["ann@example.com"])
    message["Subject"] = subject
    message.set_content("Grüße: 101,000.50 USD")
    return message


def connect(mailbox: Mailbox, timeout: float = 5.0) -> smtplib.SMTP:
    return smtplib.SMTP(mailbox.host, mailbox.port, timeout=timeout)


def test_a_mail_arrives_as_it_was_sent(mailbox: Mailbox) -> None:
    with connect(mailbox) as smtp:
        smtp.send_message(mail())
    (arrived,) = mailbox.wait_for(1)
    assert (arrived.sender, arrived.recipient) == ("ticker@example.com", "ann@example.com")
    assert arrived.message["Subject"] == "BTC above 101,000"
    assert arrived.message.get_content().strip() == "Grüße: 101,000.50 USD"
    assert arrived.received_at.tzinfo is not None


def test_a_mail_to_two_is_two_mails_in_order_of_arrival(mailbox: Mailbox) -> None:
    with connect(mailbox) as smtp:
        smtp.send_message(mail("first", "ann@example.com", "bob@example.com"))
        smtp.send_message(mail("second", "ann@example.com"))
    assert [(one.recipient, one.message["Subject"]) for one in mailbox.mails] == [
        ("ann@example.com", "first"), ("bob@example.com", "first"), ("ann@example.com", "second"),
    ]  # fmt: skip
    assert [one.message["Subject"] for one in mailbox.to("ann@example.com")] == ["first", "second"]


def test_waiting_in_vain_tells_what_did_arrive(mailbox: Mailbox) -> None:
    with connect(mailbox) as smtp:
        smtp.send_message(mail("the only one"))
    with pytest.raises(MailboxTimeoutError, match=r"for 2 mails, 1 arrived:\n  ann@example.com: the only one"):
        mailbox.wait_for(2, timeout=0.01)


def test_waiting_ends_when_the_mail_comes(mailbox: Mailbox) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(mailbox.wait_for, 1)
        with connect(mailbox) as smtp:
            smtp.send_message(mail())
        assert len(waiting.result(timeout=5)) == 1


def test_one_refused_recipient_does_not_fail_the_others(mailbox: Mailbox) -> None:
    mailbox.refuse("bob@example.com", "550 5.1.1 no such user")
    with connect(mailbox) as smtp:
        refused = smtp.send_message(mail("to both", "ann@example.com", "bob@example.com"))
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            smtp.send_message(mail("to bob", "bob@example.com"))
    assert refused == {"bob@example.com": (550, b"5.1.1 no such user")}
    assert [one.recipient for one in mailbox.mails] == ["ann@example.com"]


def test_a_refusal_after_data_ends_when_it_is_used_up(mailbox: Mailbox) -> None:
    mailbox.refuse_data("451 4.7.1 greylisted, try later", times=1)
    with connect(mailbox) as smtp:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            smtp.send_message(mail())
        assert (refused.value.smtp_code, mailbox.mails) == (451, [])
        smtp.send_message(mail())
    assert len(mailbox.mails) == 1


def test_a_refusal_after_data_may_be_for_one_recipient(mailbox: Mailbox) -> None:
    mailbox.refuse_data("554 5.7.1 rejected", times=None, recipient="bob@example.com")
    with connect(mailbox) as smtp:
        smtp.send_message(mail("to ann", "ann@example.com"))
        with pytest.raises(smtplib.SMTPDataError):
            smtp.send_message(mail("to bob", "bob@example.com"))
    mailbox.behave()
    with connect(mailbox) as smtp:
        smtp.send_message(mail("to bob again", "bob@example.com"))
    assert [one.message["Subject"] for one in mailbox.mails] == ["to ann", "to bob again"]


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_stall_outlasts_the_client_and_the_next_one_gets_through(mailbox: Mailbox, stage: str) -> None:
    mailbox.stall(stage, seconds=30)
    with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
        send_once(mailbox, timeout=0.05)
    assert mailbox.mails == []
    send_once(mailbox, timeout=5.0)
    assert len(mailbox.mails) == 1


def send_once(mailbox: Mailbox, timeout: float) -> None:
    with connect(mailbox, timeout) as smtp:
        smtp.send_message(mail())


def test_a_stall_knows_its_stages(mailbox: Mailbox) -> None:
    with pytest.raises(ValueError, match="there are CONNECT, EHLO, MAIL, RCPT, DATA"):
        mailbox.stall("QUIT", seconds=1)


def test_a_stall_does_not_hold_up_the_stop() -> None:
    mailbox = Mailbox().start()
    mailbox.stall("EHLO", seconds=30)
    with connect(mailbox) as smtp:
        smtp.putcmd("ehlo", "client")
        started = time.monotonic()
        mailbox.stop()
        assert time.monotonic() - started < 2
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.getreply()


@pytest.mark.parametrize("keep", [True, False])
def test_a_lost_250_leaves_the_sender_in_doubt(mailbox: Mailbox, keep: bool) -> None:
    mailbox.hang_up_after_data(keep=keep)
    with connect(mailbox) as smtp, pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.send_message(mail())
    assert len(mailbox.mails) == int(keep)
    with connect(mailbox) as smtp:
        smtp.send_message(mail())
    assert len(mailbox.mails) == int(keep) + 1


def test_closed_connections_are_counted_and_can_be_opened_again(mailbox: Mailbox) -> None:
    assert mailbox.connections == 0
    with connect(mailbox) as smtp:
        smtp.send_message(mail())
        mailbox.close_connections()
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.send_message(mail())
    with connect(mailbox) as smtp:
        smtp.send_message(mail())
    assert (mailbox.connections, len(mailbox.mails)) == (2, 2)


def test_a_login_can_be_required() -> None:
    with Mailbox(require_login=("ticker", "secret")) as mailbox:
        with connect(mailbox) as smtp, pytest.raises(smtplib.SMTPSenderRefused) as refused:
            smtp.send_message(mail())
        with connect(mailbox) as smtp, pytest.raises(smtplib.SMTPAuthenticationError) as wrong:
            smtp.login("ticker", "wrong")
        with connect(mailbox) as smtp:
            smtp.login("ticker", "secret")
            smtp.send_message(mail())
        assert (refused.value.smtp_code, wrong.value.smtp_code, len(mailbox.mails)) == (530, 535, 1)


def test_starttls_comes_before_login_and_mail(certificate: Certificate) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate.authority))
    with Mailbox(starttls=certificate.context, require_login=("ticker", "secret")) as mailbox:
        with connect(mailbox) as smtp:
            with pytest.raises(smtplib.SMTPNotSupportedError):
                smtp.login("ticker", "secret")
            with pytest.raises(smtplib.SMTPSenderRefused, match="STARTTLS"):
                smtp.send_message(mail())
        with connect(mailbox) as smtp:
            smtp.starttls(context=trusted)
            smtp.login("ticker", "secret")
            smtp.send_message(mail())
        with connect(mailbox) as smtp, pytest.raises(ssl.SSLCertVerificationError):
            smtp.starttls(context=ssl.create_default_context())
        assert len(mailbox.mails) == 1


def test_implicit_tls(certificate: Certificate) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate.authority))
    with Mailbox(implicit_tls=certificate.context, require_login=("ticker", "secret")) as mailbox:
        with smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=5, context=trusted) as smtp:
            smtp.login("ticker", "secret")
            smtp.send_message(mail())
        assert len(mailbox.mails) == 1


def test_a_connection_open_under_tls_does_not_hold_up_the_stop(certificate: Certificate) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate.authority))
    mailbox = Mailbox(implicit_tls=certificate.context).start()
    with smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=5, context=trusted):
        started = time.monotonic()
        mailbox.stop()
        assert time.monotonic() - started < 2
