"""Encrypted files: what opens without a password is read, what needs one is refused."""

import io

from pypdf import PdfReader, PdfWriter

from tests.support.odd_pdfs.case import OddPdf, completes, fails
from tests.support.pdf_writer import pdf_of

_ALGORITHMS = ("RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256")


def _encrypted(algorithm: str, user: str, owner: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of("A secret page").render())))
    writer.encrypt(user, owner, algorithm=algorithm)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def _with_user_password(algorithm: str) -> OddPdf:
    name = f"encrypted-{algorithm.lower()}-user-password.pdf"
    return OddPdf(name, lambda: _encrypted(algorithm, "user", "owner"), fails("pdf_encrypted"))


def _with_owner_password(algorithm: str) -> OddPdf:
    name = f"encrypted-{algorithm.lower()}-owner-password-only.pdf"
    return OddPdf(name, lambda: _encrypted(algorithm, "", "owner"), completes("A secret page"))


def _unknown_scheme() -> bytes:
    pdf = pdf_of("never read")
    number = pdf.add(b"<< /Filter /AcmeLock /V 9 /R 9 /O (o) /U (u) /P -1 /Length 128 >>")
    return pdf.render(trailer=b"/Encrypt %d 0 R /ID [<00> <00>]" % number)


CASES = [
    *(_with_user_password(algorithm) for algorithm in _ALGORITHMS),
    *(_with_owner_password(algorithm) for algorithm in _ALGORITHMS),
    OddPdf(
        "encrypted-aes-256-no-passwords.pdf",
        lambda: _encrypted("AES-256", "", ""),
        completes("A secret page"),
    ),
    OddPdf(
        "encrypted-aes-256-non-ascii-password.pdf",
        lambda: _encrypted("AES-256", "pässwörd-密码", "öwner"),
        fails("pdf_encrypted"),
    ),
    OddPdf("encrypted-unknown-scheme.pdf", _unknown_scheme, fails("pdf_encrypted")),
]
