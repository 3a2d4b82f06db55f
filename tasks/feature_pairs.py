"""The 22 pairs of features of underspecified demonstrations, as one table.

Si et al. 2023 (ACL); names and label words are those of run.py in its code
(github.com/NoviScl/AmbigPrompt); instructions and explanations say the same in our words. The first
feature of a pair is the label of its task, the second one that is easily seen in the text:

=================  =================================  ======================================
task               from                               h1
=================  =================================  ======================================
sa_sentiment       IMDb and Yelp reviews              the review is positive
comments_toxicity  CivilComments                      the comment is toxic
nli_entailment     MNLI                               the premise entails the hypothesis
boolq_answer       BoolQ                              the answer is yes
=================  =================================  ======================================
"""

from collections.abc import Mapping
from dataclasses import dataclass

from peft_jax import tree
from peft_jax.errors import InputError

PREFIX = "underspecified_"
"""In front of a pair's name, its task's."""


@dataclass(frozen=True)
class Hypothesis:
    """A feature, and how a prompt asks for it.

    Attributes:
        feature: as `find_feature` reads it.
        asks: stands before a label word, in place of "Label:".
        words: the label words for 0 and 1.
        decide: what an instruction asks, with (1) and (0) behind the two cases.
        says: the sentences that explain 0 and 1.
    """

    feature: str
    asks: str = ""
    words: tuple[str, str] = ("0", "1")
    decide: str = ""
    says: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class FeaturePair:
    """Two features that the demonstrations do not tell apart.

    Attributes:
        name: as the paper's files are called.
        fields: the texts that are joined, a line each, to make the input.
        given: how an instruction begins.
        h1, h2: the two hypotheses.
    """

    name: str
    fields: tuple[str, ...]
    h1: Hypothesis
    h2: Hypothesis
    given: str = ""


def _pairs(
    prefix: str, fields: tuple[str, ...], given: str, h1: Hypothesis, h2s: Mapping[str, Hypothesis]
) -> list[FeaturePair]:
    return [FeaturePair(f"{prefix}_{name}", fields, h1, h2, given) for name, h2 in h2s.items()]


_NO_YES = ("no", "yes")
_SENTIMENT = _pairs(
    "sa_sentiment",
    ("text",),
    "Given a review",
    Hypothesis(
        "equals(label, 1)",
        "Good?",
        _NO_YES,
        "whether the reviewer likes it (1) or does not (0)",
        ("The reviewer does not like it.", "The reviewer likes it."),
    ),
    {
        "domain": Hypothesis(
            "is(source, imdb, yelp)",
            "Source?",
            ("other", "movie"),
            "whether it is about a movie (1) or a business on Yelp (0)",
            ("The review is about a business.", "The review is about a movie."),
        ),
        "length": Hypothesis(
            "shorter(text, 40)",
            "Length?",
            ("long", "short"),
            "whether it has fewer than 40 words (1) or more (0)",
            ("The review has more than 40 words.", "The review has fewer than 40 words."),
        ),
        "lexicon_food": Hypothesis(
            "contains(text, food)",
            "Has 'food'?",
            _NO_YES,
            "whether the word 'food' is in it (1) or not (0)",
            ("The word 'food' is not in the review.", "The word 'food' is in the review."),
        ),
        "lexicon_nice": Hypothesis(
            "contains(text, nice)",
            "Has 'nice'?",
            _NO_YES,
            "whether the word 'nice' is in it (1) or not (0)",
            ("The word 'nice' is not in the review.", "The word 'nice' is in the review."),
        ),
        "punctuation": Hypothesis(
            "exclaims(text)",
            "End punctuation?",
            ("period", "other"),
            "whether it ends with an exclamation mark (1) or a full stop (0)",
            ("The review ends with a full stop.", "The review ends with an exclamation mark."),
        ),
        "uppercase": Hypothesis(
            "capitals(text)",
            "Uppercase words?",
            _NO_YES,
            "whether a word in it has capitals alone, as THIS (1), or none has (0)",
            ("No word is in capitals.", "A word is in capitals."),
        ),
    },
)
_TOXICITY = _pairs(
    "comments_toxicity",
    ("text",),
    "Given a comment",
    Hypothesis(
        "at_least(toxicity, 0.5)",
        "Toxic?",
        _NO_YES,
        "whether it is toxic, as an insult, a threat or an attack on a group is (1), or not (0)",
        ("The comment is not toxic.", "The comment is toxic."),
    ),
    {
        "gender": Hypothesis(
            "rather(female, male, 0.5)",
            "Gender?",
            ("male", "female"),
            "whether it speaks of women (1) or of men (0)",
            ("The comment speaks of men.", "The comment speaks of women."),
        ),
        "gender_lgbtq": Hypothesis(
            "at_least(LGBTQ, 0.5)",
            "LGBTQ?",
            _NO_YES,
            "whether it speaks of LGBTQ people (1) or not (0)",
            (
                "The comment does not speak of LGBTQ people.",
                "The comment speaks of LGBTQ people.",
            ),
        ),
        "length": Hypothesis(
            "shorter(text, 40)",
            "Length?",
            ("long", "short"),
            "whether it has fewer than 40 words (1) or more (0)",
            ("The comment has more than 40 words.", "The comment has fewer than 40 words."),
        ),
        "race_black_white": Hypothesis(
            "rather(black, white, 0.5)",
            "Race?",
            ("white", "black"),
            "whether it speaks of Black (1) or white people (0)",
            ("The comment speaks of white people.", "The comment speaks of Black people."),
        ),
        "religion_muslim_christian": Hypothesis(
            "rather(muslim, christian, 0.5)",
            "Religion?",
            ("Christian", "Muslim"),
            "whether it speaks of Muslims (1) or of Christians (0)",
            ("The comment speaks of Christians.", "The comment speaks of Muslims."),
        ),
        "religion_muslim_jewish": Hypothesis(
            "rather(muslim, jewish, 0.5)",
            "Religion?",
            ("Jewish", "Muslim"),
            "whether it speaks of Muslims (1) or of Jews (0)",
            ("The comment speaks of Jews.", "The comment speaks of Muslims."),
        ),
        "uppercase": Hypothesis(
            "capitals(text)",
            "Uppercase words?",
            _NO_YES,
            "whether a word in it has capitals alone, as THIS (1), or none has (0)",
            ("No word is in capitals.", "A word is in capitals."),
        ),
    },
)
_ENTAILMENT = _pairs(
    "nli_entailment",
    ("premise", "hypothesis"),
    "Given two sentences",
    Hypothesis(
        "equals(label, 0)",
        "Entailed?",
        _NO_YES,
        "whether the first entails the second (1) or does not (0)",
        (
            "The first sentence does not entail the second.",
            "The first sentence entails the second.",
        ),
    ),
    {
        "genre_gov_fic": Hypothesis(
            "is(genre, government, fiction)",
            "Source?",
            ("fiction", "government"),
            "whether they are from a government's publication (1) or from fiction (0)",
            ("The text is from fiction.", "The text is from a government's publication."),
        ),
        "genre_gov_tele": Hypothesis(
            "is(genre, government, telephone)",
            "Source?",
            ("phone", "government"),
            "whether they are from a government's publication (1) or from the telephone (0)",
            ("The text is from the telephone.", "The text is from a government's publication."),
        ),
        "length": Hypothesis(
            "shorter_than(hypothesis, premise)",
            "Shorter?",
            _NO_YES,
            "whether the second is shorter than the first (1) or longer (0)",
            (
                "The second sentence is longer than the first.",
                "The second sentence is shorter than the first.",
            ),
        ),
        "negation": Hypothesis(
            "affirms(hypothesis)",
            "Without negation?",
            _NO_YES,
            "whether the second is without words of negation such as 'not' (1) or has one (0)",
            (
                "The second sentence has a word of negation.",
                "The second sentence has no word of negation.",
            ),
        ),
        "overlap": Hypothesis(
            "all_in(hypothesis, premise)",
            "Overlap?",
            _NO_YES,
            "whether all words of the second are in the first (1) or not (0)",
            (
                "Not all words of the second sentence are in the first.",
                "All words of the second sentence are in the first.",
            ),
        ),
    },
)
_ANSWER = _pairs(
    "boolq_answer",
    ("passage", "question"),
    "Given a passage and a question",
    Hypothesis(
        "equals(label, 1)",
        "Answer?",
        _NO_YES,
        "whether the passage answers the question with yes (1) or with no (0)",
        ("The answer to the question is no.", "The answer to the question is yes."),
    ),
    {
        "length": Hypothesis(
            "longer(passage, 50)",
            "Length?",
            ("short", "long"),
            "whether the passage has more than 50 words (1) or fewer (0)",
            ("The passage has fewer than 50 words.", "The passage has more than 50 words."),
        ),
        "overlap": Hypothesis(
            "mostly_in(question, passage)",
            "Overlap?",
            _NO_YES,
            "whether the words of the question are in the passage (1) or not (0)",
            (
                "The words of the question are not in the passage.",
                "The words of the question are in the passage.",
            ),
        ),
        "qword": Hypothesis(
            "asks_be(question)",
            "Question word?",
            ("do", "be"),
            "whether the question begins with is or was (1) or with do, does or did (0)",
            ("The question begins with do, does or did.", "The question begins with is or was."),
        ),
        "structure": Hypothesis(
            "contains(question, same as)",
            "Has 'same as'?",
            _NO_YES,
            "whether the words 'same as' are in the question (1) or not (0)",
            (
                "The words 'same as' are not in the question.",
                "The words 'same as' are in the question.",
            ),
        ),
    },
)
PAIRS: dict[str, FeaturePair] = {
    pair.name: pair for pair in (*_SENTIMENT, *_TOXICITY, *_ENTAILMENT, *_ANSWER)
}
"""The paper's pairs, by the names of its files."""


def find_pair(name: str) -> FeaturePair:
    """The paper's pair of a name, with or without "underspecified_".

    Raises InputError, with the nearest name, if there is none.
    """
    key = name.removeprefix(PREFIX)
    if key not in PAIRS:
        raise InputError(f"no pair of features is named {name!r}; {tree.nearest(key, PAIRS)}")
    return PAIRS[key]
