"""Penn Treebank tokens of English, as the MS COCO caption evaluation reads texts.

The evaluation runs Stanford's PTBTokenizer (CoreNLP 3.4.1, a Java program) and drops punctuation.
Where that program can be run it is (``java_tools``); elsewhere the rules below take its place. They
were found from what the program does to texts: on the 13,924 different lines of the E2E and WebNLG
data they give its tokens, and for 99 in 100 lines of stories, encyclopedia articles, chat and
arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft_jax.metrics import java_tools

DROPPED = frozenset(["''", "'", "``", "`", *".?!,:;", "-", "--", "..."])


def caption_tokens(lines: Sequence[str]) -> list[str]:
    """Each text in lower case, its tokens between single spaces, with no punctuation."""
    if java_tools.why_missing(java_tools.TOKENIZER) is None:
        tokenized = [line.split(" ") for line in java_tools.stanford_tokens(lines)]
    else:
        tokenized = treebank_tokens(lines)
    return [" ".join(word for word in line if word not in DROPPED) for line in tokenized]


def treebank_tokens(lines: Sequence[str]) -> list[list[str]]:
    """The tokens of each line, in lower case, quotes and brackets as the treebank writes them.

    Lines are read in a row, as the program reads its file: whether the full stop behind a single
    letter is part of a name depends on the word behind it, which may be the next line's first.
    """
    tokenized: list[list[str]] = [[]]
    for found in _TOKEN.finditer("\n".join(" ".join(line.split()) for line in lines)):
        token = found[0]
        if token == "\n":
            tokenized.append([])
        elif written := _written(token):
            tokenized[-1].append(written)
    return tokenized


# --------------------------------------------------------------------------------------------
# The rules, the first that fits wins
# --------------------------------------------------------------------------------------------
_QUOTE = "['’‘]"
_LETTER = r"[^\W\d_]"
_CHARACTER = "(?:[^\\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f]|[\u0300-\u036f])"
_END = f"(?!{_CHARACTER})"
_NUMBER = r"\d*(?:[.,:]\d+)+"

# Words whose full stop is part of them: in any case, with a capital only, and before a number.
_ABBREVIATIONS = (
    r"adj|adm|adv|ala|alex|apr|ariz|assn|assoc|asst|atty|attys|aug|ave|bancorp|bhd|bldg|blvd"
    r"|brig|bros|calif|capt|cf|cie|cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept"
    r"|det|dr|drs|ed\.d|elec|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|govs|hon|inc|ind"
    r"|insp|intl|invt|al|jan|jos|jr|jul|jun|kan|kans|ky|lieut|lt|ltd|m\.d|maj|mar|md|messrs"
    r"|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|natl|neb|nev|nov|oct|okla|penn|pfc"
    r"|ph\.d|plc|pres|prof|profs|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq"
    r"|sr|st|ste|supt|supts|sys|tel|tenn|thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wisc"
    r"|wm|wyo"
)
_CAPITALISED = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_BEFORE_NUMBER = "no|nos|prop|art|ca|fig|figs|op|pp"
# Words that begin a sentence, so that a single letter before them ends one.
_STARTS = (
    r"A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It"
    r"|Last|Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There"
    r"|These|They|This|We|What|When|While|Yet|You"
)
_SPLIT = {"can": "not", "gon": "na", "got": "ta", "wan": "na", "gim": "me", "lem": "me"}


def _two_words() -> list[str]:
    """cannot, gonna ...: two tokens with nothing between."""
    return [
        rule
        for first, second in _SPLIT.items()
        for rule in (
            f"(?i:\\b{first})(?=(?i:{second}){_END})",
            f"(?i:(?<=\\b{first}){second}){_END}",
        )
    ]


_RULES = [
    r"\n",
    r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)']",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"</?[A-Za-z!?][^<>\n]*>",
    r"&(?:lt|gt|amp|quot|apos);",
    r"-(?:[LR][RCS]B|[lr][rcs]b)-",
    r"[:;][-]?[)(DP](?!\w)",
    f"(?i:{_ABBREVIATIONS})\\.{_END}",
    f"(?:{_CAPITALISED}|{_CAPITALISED.upper()})\\.{_END}",
    f"(?i:{_BEFORE_NUMBER})\\.(?=\\s*\\d)",
    *_two_words(),
    f"{_CHARACTER}+(?=[nN]['’`][tT]{_END})",
    f"[nN]['’`][tT]{_END}",
    f"(?<={_LETTER}){_QUOTE}(?i:s|m|d|re|ve|ll){_END}",
    f"{_QUOTE}[tT](?=(?i:is|was){_END})",
    f"{_QUOTE}(?:n{_QUOTE}?|em|til|cause|\\d0s){_END}|ol{_QUOTE}{_END}",
    f"{_QUOTE}(?i:s|m|d|re|ve|ll){_END}",
    f"(?:{_LETTER}\\.)+{_LETTER}\\.(?:-[A-Za-z]+|{_END})",
    f"{_LETTER}{_CHARACTER}*(?:[.!?]{_LETTER}{_CHARACTER}*)+(?!-{_CHARACTER})",
    f"{_LETTER}\\.(?!\\s+(?:(?:{_STARTS})\\s|<)){_END}",
    f"{_LETTER}{_CHARACTER}*\\.(?=[,;:])",
    f"[-+]?{_NUMBER}(?!-{_CHARACTER})(?!{_LETTER}+\\d)",
    f"\\d{{1,4}}[- ]\\d{{1,4}}/\\d{{1,4}}{_END}",
    r"[A-Z]+(?:&[A-Z]+)+",
    r"[A-Z]*\$",
    "C\\+\\+|[CF]#",
    f"(?<!{_CHARACTER})[#@][A-Za-z]\\w*",
    f"(?:[dDoOlL]{_QUOTE})?{_CHARACTER}+(?:[-_]{_CHARACTER}+)*"
    f"(?:/{_CHARACTER}+(?:[-_]{_CHARACTER}+)*){{1,2}}",
    f"[-+]\\d+{_END}",
    f"{_LETTER}*[aeiouyAEIOUY]{_QUOTE}[aeiouAEIOU]{_LETTER}*",
    f"(?:[dDoOlLA-HJ-XZn]{_QUOTE}(?={_LETTER}))?{_CHARACTER}+"
    f"(?:[-_](?:[dDoOlL]{_QUOTE}(?={_LETTER}))?{_CHARACTER}+)*",
    r"\.{3,}|--+|[!?]+|##+|\*\*+|__+|<<|>>|``|''",
    r"\S",
]
_TOKEN = re.compile("|".join(f"(?:{rule})" for rule in _RULES))

_SIGNS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "“": "``", "”": "''",
    "‘": "`", '"': "``", "–": "--", "—": "--", "…": "...", "&lt;": "<", "&gt;": ">", "&amp;": "&",
    "&quot;": '"', "&apos;": "'", "\ufeff": "", "\u200b": "",
}  # fmt: skip


def _written(token: str) -> str:
    """A token as the program writes it; "" for what it deletes: pictures, marks without width."""
    if token in _SIGNS:
        return _SIGNS[token]
    if token.startswith("--"):
        return "--"
    if token.startswith("..."):
        return "..."
    if token[0] in ":;" and token[-1] in "()":
        return token[:-1] + _SIGNS[token[-1]]
    if ord(token[0]) > 0xFFFF and not token[0].isalnum():
        return ""
    # A number and its fraction are one token, with a space in it that does not break.
    return token.replace("’", "'").replace("‘", "'").replace(" ", "\N{NO-BREAK SPACE}").lower()
