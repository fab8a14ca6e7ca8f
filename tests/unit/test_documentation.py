"""What the README says of the settings is what there is."""

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.embedder.config import EmbedderSettings
from services.gateway.config import GatewaySettings
from services.indexer.config import IndexerSettings
from services.parser.config import ParserSettings
from services.tracker.config import TrackerSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SERVICES: list[type[BaseSettings]] = [
    GatewaySettings,
    ParserSettings,
    EmbedderSettings,
    IndexerSettings,
    TrackerSettings,
]


def settings_in_readme() -> set[str]:
    table = README.split("## Configuration")[1].split("## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in first_cells for name in re.findall(r"`([A-Z_]+)`", cell)}


def test_every_setting_is_in_the_readme_and_no_other() -> None:
    assert settings_in_readme() == {name.upper() for settings in SERVICES for name in settings.model_fields}


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_file_that_a_page_links_to_or_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:services|shared|deploy|tests|cli|docs)/[\w./]+)", text)
    base = (ROOT / page).parent
    assert not [link for link in links if not (base / link).exists()]
    assert not [name for name in named if not (ROOT / name.rstrip(".")).exists()]
