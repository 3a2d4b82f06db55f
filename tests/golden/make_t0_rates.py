"""Writes t0_rates.json: what t-zero's and T-Few's own code makes of the training mixtures.

    python -m tests.golden.make_t0_rates T-ZERO PROMPTSOURCE T-FEW

Checkouts of github.com/bigscience-workshop/t-zero (run: commit 7a699e3), github.com/
bigscience-workshop/promptsource (commit 7dab96a3ee) and github.com/r-three/t-few (commit 114dece).
Their modules run as they are; what they only register with (seqio, t5, datasets) is replaced by
stand-ins that record. For each mixture: a dataset's number of templates and the sum of their rates.
"""

import importlib
import importlib.util
import json
import sys
import types
from collections import defaultdict
from pathlib import Path
from unittest.mock import MagicMock

OUTPUT = Path(__file__).with_name("t0_rates.json")


def stand_ins(promptsource: Path, here: Path) -> None:
    """Modules that t-zero and T-Few import; promptsource.templates is the real one."""
    for name in ("datasets", "t5", "t5.data", "t5.data.glue_utils", "t5.evaluation", "tensorflow"):
        sys.modules[name] = MagicMock()
    for name in ("requests", "pandas"):
        sys.modules.setdefault(name, MagicMock())
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda package, path: str(  # type: ignore[attr-defined]
        promptsource / "promptsource" / path
        if package == "promptsource.templates"
        else (here / path).resolve()
    )
    sys.modules["pkg_resources"] = resources
    sys.path.insert(0, str(promptsource))


def rates_of(names, rate, dataset_of) -> dict[str, list[int]]:
    """dataset -> [templates, sum of rates]."""
    found = defaultdict(lambda: [0, 0])
    for name in names:
        entry = found[dataset_of[name]]
        entry[0] += 1
        entry[1] += rate(types.SimpleNamespace(name=name))
    return dict(sorted(found.items()))


def t_zero(checkout: Path) -> dict[str, dict]:
    """Mixtures as t0/seqio_tasks/tasks.py registers them."""
    mixtures, dataset_of = {}, {}
    seqio = MagicMock()
    seqio.TaskRegistry.names.return_value = []
    seqio.MixtureRegistry.add = lambda name, members, default_rate: mixtures.update(
        {name: (members, default_rate)}
    )
    sys.modules["seqio"] = seqio
    for name in ("t0", "t0.seqio_tasks"):  # their own __init__ would import tasks too early
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    from t0.seqio_tasks import utils

    utils.get_dataset_splits = lambda *_: MagicMock(keys=list)

    plain = utils.get_task_name

    def recorded(dataset, subset, template):
        name = plain(dataset, subset, template)
        dataset_of[name] = dataset if subset is None else f"{dataset}/{subset}"
        return name

    utils.get_task_name = recorded
    importlib.import_module("t0.seqio_tasks.tasks")

    return {
        name: rates_of(*mixtures[name], dataset_of)
        for name in ("t0_train", "t0+_train", "t0++_train")
    }


def t_few(checkout: Path) -> dict[str, dict]:
    """The pretraining mixture of src/data/dataset_readers.py."""
    file = checkout / "src" / "data" / "dataset_readers.py"
    spec = importlib.util.spec_from_file_location("dataset_readers", file)
    readers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readers)
    readers.pkg_resources.resource_filename = lambda package, path: str(file.with_name(path))
    tasks = readers.T0MixtureReader(None).t0_base_tasks
    found = defaultdict(lambda: [0, 0])
    for dataset, subset, _, cap in tasks:
        entry = found[dataset if subset is None else f"{dataset}/{subset}"]
        entry[0] += 1
        entry[1] += cap
    return {"tfew": dict(sorted(found.items()))}


def main(t_zero_checkout: Path, promptsource: Path, t_few_checkout: Path) -> None:
    stand_ins(promptsource, t_zero_checkout / "t0" / "seqio_tasks")
    mixtures = t_zero(t_zero_checkout) | t_few(t_few_checkout)
    OUTPUT.write_text(json.dumps(mixtures, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
