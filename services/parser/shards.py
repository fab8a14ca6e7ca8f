"""How a document is cut into shards of pages, the units that parser replicas share."""

PDFIUM_PAGES = 64
"""Pages of a shard for pdfium: 0.1-0.3 s of work, so that even 200 pages spread over several replicas."""

PYPDF_PAGES = 128
"""Pages of a shard for pypdf: it walks the whole page tree, 0.5-1 s in a big file, before it reads a page."""


def shards_of(pages: int, engine: str) -> list[tuple[int, int]]:
    """Cut pages 1 to `pages` into ranges (first, last) of nearly equal length, both ends included.

    No shard is a short rest: the work is spread evenly, and one bad page is never a shard of its own in a long
    document.
    """
    if pages < 1:
        raise ValueError(f"a document has at least 1 page, not {pages}")
    limit = PYPDF_PAGES if engine == "pypdf" else PDFIUM_PAGES
    count = -(-pages // limit)
    return [(pages * n // count + 1, pages * (n + 1) // count) for n in range(count)]
