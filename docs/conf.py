"""How the pages are built: ``make docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "flask_uow"
author = "The flask_uow authors"
version = release = version_of("flask_uow")

extensions = ["sphinx.ext.autodoc", "running"]
exclude_patterns = ["build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

html_theme = "furo"
html_title = f"flask_uow {version}"
html_copy_source = False
