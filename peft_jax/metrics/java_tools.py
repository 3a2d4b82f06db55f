"""The two Java programs that published figures were made with: METEOR 1.5, Stanford's tokenizer.

Both jars are files of the package pycocoevalcap (``pip install pycocoevalcap``), where they are
found without further ado; environment variables name them elsewhere. Nothing here is needed for
any metric but METEOR.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft_jax.errors import InputError

METEOR, TOKENIZER = "PEFT_JAX_METEOR_JAR", "PEFT_JAX_CORENLP_JAR"
_PACKAGED = {
    METEOR: "meteor/meteor-1.5.jar",
    TOKENIZER: "tokenizer/stanford-corenlp-3.4.1.jar",
}


def find_jar(variable: str) -> Path | None:
    """The jar that an environment variable names, or else pycocoevalcap's; None: neither is there.

    Raises:
      InputError: the variable names no file.
    """
    if given := os.environ.get(variable):
        if not Path(given).is_file():
            raise InputError(f"{variable} names {given!r}, which is no file")
        return Path(given)
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return None
    jar = Path(next(iter(package.submodule_search_locations))) / _PACKAGED[variable]
    return jar if jar.is_file() else None


def why_missing(variable: str) -> str | None:
    """One line that says why the program cannot be run; None: it can."""
    if shutil.which("java") is None:
        return "it is computed by a Java program, and there is no java on the path"
    if find_jar(variable) is None:
        name = Path(_PACKAGED[variable]).name
        return f"{name} is not found: pip install pycocoevalcap, or name the file in {variable}"
    return None


def stanford_tokens(lines: Sequence[str]) -> list[str]:
    """Each line as the E2E script's tokenizer leaves it: lower case, tokens between spaces.

    Raises:
      InputError: :func:`why_missing` says why.
    """
    jar = _needed(TOKENIZER)
    flat = "\n".join(" ".join(line.split()) for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines.txt"
        file.write_text(flat + "\n", encoding="utf-8")
        program = "edu.stanford.nlp.process.PTBTokenizer"
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), program]
        options = ["-preserveLines", "-lowerCase", str(file)]
        run = subprocess.run([*command, *options], capture_output=True, encoding="utf-8")
    tokenized = run.stdout.split("\n")[: len(lines)]
    if run.returncode or len(tokenized) != len(lines):
        raise InputError(f"{jar.name} failed: {run.stderr.strip()[-500:] or 'it lost lines'}")
    return [line.rstrip() for line in tokenized]


def meteor(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) of tokenised texts, English, in [0, 1].

    The jar is driven as pycocoevalcap drives it: statistics of each row, then one figure for all.

    Raises:
      InputError: :func:`why_missing` says why.
    """
    jar = _needed(METEOR)
    command = ["java", "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as process:
        given, said = process.stdin, process.stdout
        assert given is not None
        assert said is not None

        def ask(line: str) -> str:
            given.write(line + "\n")
            given.flush()
            answer = said.readline()
            if not answer:
                raise InputError(f"{jar.name} stopped at the line {line[:200]!r}")
            return answer.strip()

        rows = [
            ask(" ||| ".join(["SCORE", *map(_plain, row), _plain(text)]))
            for text, row in zip(texts, references, strict=True)
        ]
        ask(" ||| ".join(["EVAL", *rows]))
        for _ in rows[1:]:
            said.readline()
        figure = float(said.readline())
        given.close()
    return figure


def _needed(variable: str) -> Path:
    if reason := why_missing(variable):
        raise InputError(reason)
    jar = find_jar(variable)
    assert jar is not None
    return jar


def _plain(text: str) -> str:
    """Without the mark that separates texts on the program's input."""
    return " ".join(text.replace("|||", "").split())
