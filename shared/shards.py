"""How a document is cut into shards of pages, the units that parser replicas share.

The cut depends on nothing but the number of pages. A document that is planned twice, the second time with another
engine, so has the same shards, and what is done of them stays right.
"""

SHARD_PAGES = 64
"""Pages of a shard: 0.1-0.3 s of work for pdfium, 1-5 s for pypdf, so that even 200 pages spread over replicas."""


def shards_of(pages: int) -> list[tuple[int, int]]:
    """Cut pages 1 to `pages` into ranges (first, last) of nearly equal length, both ends included.

    No shard is a short rest: the work is spread evenly, and one bad page is never a shard of its own in a long
    document.
    """
    if pages < 1:
        raise ValueError(f"a document has at least 1 page, not {pages}")
    count = -(-pages // SHARD_PAGES)
    return [(pages * n // count + 1, pages * (n + 1) // count) for n in range(count)]
