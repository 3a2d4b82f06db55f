"""Writes promptsource_renders.json: digests of what promptsource itself renders.

    python make_promptsource_renders.py PROMPTSOURCE DATA

PROMPTSOURCE is a checkout of github.com/bigscience-workshop/promptsource (run: commit 7dab96a3ee,
after 0.2.3), DATA the folder of datasets that tests/conftest.py calls shared_data. For every
template of every dataset of the table: the SHA-256 of the rendered parts and answer choices of the
first rows of the validation split, so that neither templates nor data are copied here.
"""

import hashlib
import json
import sys
import types
from pathlib import Path

import yaml

from peft_jax.tasks.datasets import DATASETS
from peft_jax.tasks.sources import find_source, read_rows

ROWS = 40


def promptsource_templates(checkout: Path):
    """promptsource/templates.py as a module; pandas and pkg_resources only serve its web app."""
    for name in ("pandas", "pkg_resources"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["pkg_resources"].resource_filename = lambda *_: ""
    module = types.ModuleType("promptsource_templates")
    exec((checkout / "promptsource" / "templates.py").read_text(), module.__dict__)
    return module


def main(checkout: Path, data: Path) -> None:
    promptsource_templates(checkout)  # registers the YAML tags
    digests = {}
    for name, dataset in DATASETS.items():
        file = data / "promptsource_templates" / dataset.templates / "templates.yaml"
        templates = yaml.load(file.read_text(), Loader=yaml.FullLoader)["templates"].values()
        source, folder = find_source(name, data)
        rows = read_rows(source, "validation", folder)
        digests[name] = {
            template.name: hashlib.sha256(
                json.dumps(
                    [[template.apply(r), template.get_answer_choices_list(r)] for r in rows[:ROWS]]
                ).encode()
            ).hexdigest()
            for template in sorted(templates, key=lambda t: t.name)
        }
    output = Path(__file__).with_name("promptsource_renders.json")
    output.write_text(json.dumps({"rows": ROWS, "digests": digests}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
