"""`python -m bench`: measures on a stack of its own, which is gone again afterwards. Takes some minutes."""

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from bench.corpus import Corpus
from bench.freshness import measure_freshness
from bench.journey import DocumentFailedError
from bench.latency import measure_latency
from bench.report import page
from bench.results import Conditions, Results
from bench.throughput import measure_throughput
from cli.client import ApiError
from deploy.local import LocalStack, LocalStackError, StackOptions

FIGURES = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
"""Written together, so that the page never shows other figures than those that lie here."""

MEASUREMENTS = ("latency", "freshness", "throughput")


def main() -> None:
    """Measure what the command line says, and write the results."""
    options = _options()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer yet is no news
    try:
        results = asyncio.run(_measure(options))
    except (LocalStackError, ApiError, DocumentFailedError) as error:
        sys.exit(f"bench: {error}")
    options.out.write_text(results.model_dump_json(indent=2) + "\n")
    options.page.write_text(page(results))
    print(page(results))
    print(f"Written to {options.out} and {options.page}.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure how fast Paperlane is here.")
    parser.add_argument("what", nargs="?", choices=[*MEASUREMENTS, "all"], default="all", help="all by default")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="more large PDFs to measure throughput with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, and beside them the page")
    options = parser.parse_args()
    if options.samples and not any(options.samples.glob("*.pdf")):
        parser.error(f"--samples {options.samples} has no *.pdf: name a folder with large PDFs")
    if options.out and not options.out.parent.is_dir():
        parser.error(
            f"there is no folder {options.out.parent} to write {options.out.name} to: make it, or name another"
        )
    options.page = options.out.with_suffix(".md") if options.out else PAGE
    options.out = options.out or FIGURES
    return options


async def _measure(options: argparse.Namespace) -> Results:
    wanted = MEASUREMENTS if options.what == "all" else (options.what,)
    results = Results.load(options.out)
    command = f"python -m bench {options.what}" + (" --samples DIR" if options.samples else "")
    results.conditions.update(dict.fromkeys(wanted, Conditions.here(command)))
    with tempfile.TemporaryDirectory(prefix="paperlane-bench-") as folder:
        corpus = Corpus(Path(folder))
        print("Starting a stack …")
        async with LocalStack(StackOptions(data=Path(folder) / "data", port=0)) as stack:
            if "latency" in wanted:
                print("Measuring latency …")
                results.latency = await measure_latency(stack.url, corpus)
            if "freshness" in wanted:
                print("Measuring freshness …")
                database = stack.environment["DATABASE_URL"]
                results.freshness = await measure_freshness(stack.url, database, corpus)
            if "throughput" in wanted:
                print("Measuring throughput …")
                results.throughput = await measure_throughput(stack, corpus, options.samples)
    return results


if __name__ == "__main__":
    main()
