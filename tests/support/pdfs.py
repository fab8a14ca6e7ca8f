"""A corpus of odd PDFs: damaged, encrypted, hostile, huge, and rare but right, with what is to become of each."""

from tests.support.odd_pdfs import bombs, damaged, encrypted, samples, structure, texts
from tests.support.odd_pdfs.case import Expect, OddPdf

__all__ = ["ODD_PDFS", "Expect", "OddPdf"]

ODD_PDFS: list[OddPdf] = [
    *samples.CASES,
    *damaged.CASES,
    *encrypted.CASES,
    *structure.CASES,
    *texts.CASES,
    *bombs.CASES,
]
