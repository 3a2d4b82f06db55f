"""Writes p3_renders.json: digests of what promptsource itself makes of made-up rows.

    python -m tests.golden.make_p3_renders PROMPTSOURCE

PROMPTSOURCE is a checkout of github.com/bigscience-workshop/promptsource (run: commit 7dab96a3ee,
after 0.2.3). For every dataset of p3_rows.py and every template: the SHA-256 of the rendered parts
and answer choices of all rows. Templates that draw one of several items at random are left out.
"""

import hashlib
import json
import sys
from pathlib import Path

import yaml

from tests.golden.make_promptsource_renders import promptsource_templates
from tests.golden.p3_rows import ROWS

OUTPUT = Path(__file__).with_name("p3_renders.json")


class Drawn(Exception):
    """A template draws at random."""


def only(items):
    """promptsource's filter ``choice`` where there is nothing to choose."""
    if len(items) != 1:
        raise Drawn
    return items[0]


def digest(renders: list) -> str:
    """Of [[input, target], choices] or [[""], choices] per row."""
    return hashlib.sha256(json.dumps(renders).encode()).hexdigest()


def main(checkout: Path) -> None:
    promptsource_templates(checkout).env.filters["choice"] = only  # registers the YAML tags, too
    digests: dict[str, dict[str, str]] = {}
    for hub, rows in ROWS.items():
        file = checkout / "promptsource" / "templates" / hub / "templates.yaml"
        templates = yaml.load(file.read_text(), Loader=yaml.FullLoader)["templates"].values()
        digests[hub] = {}
        for template in sorted(templates, key=lambda t: t.name):
            try:
                renders = [[template.apply(r), template.get_answer_choices_list(r)] for r in rows]
            except Drawn:
                continue
            digests[hub][template.name] = digest(renders)
    OUTPUT.write_text(json.dumps(digests, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
