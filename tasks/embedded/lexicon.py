"""The small world that the embedded tasks speak about: people, things, places, scripts.

Everything here was written for this project.  Sentences are patterns with the slots
``{n}`` (a name), ``{p}`` (its pronoun) and ``{s}`` (its possessive); `fill` replaces them.
"""

from __future__ import annotations

from random import Random

WOMEN = (
    "Anna", "Beth", "Carla", "Dora", "Emma", "Grace",
    "Helen", "Julia", "Laura", "Maria", "Nina", "Sara",
)  # fmt: skip
MEN = (
    "Adam", "Ben", "Carl", "David", "Eric", "Frank",
    "Henry", "Jack", "Leo", "Oscar", "Simon", "Tom",
)  # fmt: skip
PEOPLE = (*WOMEN, *MEN)

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split(", "))
    for kind, words in {
        "animal": "dog, cat, horse, cow, rabbit, fox",
        "bird": "robin, eagle, duck, owl, crow, swan",
        "fruit": "apple, pear, lemon, orange, plum, cherry",
        "vegetable": "carrot, onion, potato, cabbage, cucumber, leek",
        "drink": "coffee, tea, milk, juice, lemonade, cocoa",
        "tool": "hammer, saw, drill, shovel, rake, axe",
        "vehicle": "car, bus, truck, van, tractor, taxi",
        "garment": "shirt, coat, scarf, hat, sweater, skirt",
        "instrument": "piano, guitar, violin, flute, trumpet, drum",
        "flower": "rose, tulip, daisy, lily, orchid, violet",
    }.items()
}
COUNTLESS = frozenset(KINDS["drink"])  # said with "some", not with "a"
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}

PLACES = (
    "in the garden",
    "in the kitchen",
    "at the market",
    "at school",
    "in the park",
    "at the station",
    "on the beach",
    "at the office",
)
TIMES = (
    "yesterday",
    "last week",
    "on Monday",
    "on Friday",
    "this morning",
    "last night",
    "in May",
    "in winter",
)
SYNONYMS: tuple[tuple[str, str], ...] = (
    ("big", "large"), ("small", "little"), ("quick", "fast"), ("rich", "wealthy"),
    ("smart", "clever"), ("silent", "quiet"), ("ill", "sick"), ("old", "ancient"),
    ("strange", "odd"), ("angry", "furious"), ("happy", "glad"), ("sad", "unhappy"),
    ("difficult", "hard"), ("easy", "simple"), ("begin", "start"), ("end", "finish"),
    ("shop", "store"), ("gift", "present"), ("child", "kid"), ("buy", "purchase"),
    ("scared", "afraid"), ("tired", "weary"), ("home", "house"), ("road", "street"),
    ("woods", "forest"), ("stone", "rock"), ("job", "work"), ("mistake", "error"),
    ("help", "assist"), ("pretty", "beautiful"),
)  # fmt: skip
ANTONYMS: tuple[tuple[str, str], ...] = (
    ("big", "small"), ("quick", "slow"), ("rich", "poor"), ("smart", "stupid"),
    ("silent", "loud"), ("ill", "healthy"), ("old", "new"), ("strange", "normal"),
    ("happy", "sad"), ("difficult", "easy"), ("begin", "end"), ("buy", "sell"),
    ("scared", "brave"), ("tired", "rested"), ("help", "harm"), ("pretty", "ugly"),
    ("hot", "cold"), ("wet", "dry"), ("full", "empty"), ("open", "closed"), ("light", "dark"),
    ("high", "low"), ("early", "late"), ("near", "far"), ("strong", "weak"), ("clean", "dirty"),
)  # fmt: skip

# Sentences that say the same with other words: (a, b) pairs of verb phrases and of objects.
SAME_ACTION: tuple[tuple[str, str], ...] = (
    ("bought", "purchased"), ("fixed", "repaired"), ("found", "discovered"),
    ("wanted", "wished for"), ("showed", "presented"), ("threw away", "got rid of"),
    ("looked at", "examined"), ("picked", "chose"), ("lost", "misplaced"),
    ("received", "got"), ("liked", "enjoyed"), ("hid", "concealed"), ("broke", "smashed"),
    ("borrowed", "took on loan"), ("sold", "gave for money"), ("cleaned", "washed"),
)  # fmt: skip

GOOD = (
    "great", "wonderful", "lovely", "excellent", "perfect", "brilliant", "superb", "pleasant",
)  # fmt: skip
BAD = (
    "awful", "terrible", "horrible", "boring", "poor", "nasty", "miserable", "dull",
)  # fmt: skip
ASPECTS: dict[str, tuple[str, ...]] = {
    "film": ("story", "acting", "ending", "music", "scenes"),
    "book": ("plot", "writing", "hero", "chapters", "cover"),
    "restaurant": ("food", "soup", "service", "dessert", "drinks"),
    "phone": ("screen", "battery", "sound", "keyboard", "design"),
    "concert": ("band", "singer", "sound", "lights", "crowd"),
    "hotel": ("room", "bed", "breakfast", "pool", "view", "staff", "bathroom", "lobby"),
}
PRAISE = (
    "I loved every minute of it", "I would do it again", "it made my day",
    "it was worth every penny", "everyone enjoyed it",
)  # fmt: skip
BLAME = (
    "I hated every minute of it", "I will never do it again", "it ruined my day",
    "it was a waste of money", "everyone complained",
)  # fmt: skip

EMOTIONS: dict[str, tuple[str, ...]] = {
    "happy": (
        "{n} won the first prize",
        "{n} got a puppy for {s} birthday",
        "{n} passed the exam",
        "{n} danced around the room",
        "{n} got a letter from {s} best friend",
        "{n} smiled all day long",
    ),
    "sad": (
        "{n} cried because {s} cat had died",
        "{n} lost {s} best friend",
        "{n} failed the exam",
        "{n} had tears in {s} eyes",
        "{n} had to say goodbye to {s} family",
        "{n} missed {s} old home",
    ),
    "angry": (
        "{n} shouted at the driver",
        "{n} slammed the door",
        "{n} saw that somebody had stolen {s} bike",
        "{n} threw the cup at the wall",
        "{n} yelled because the neighbours were so loud",
        "{n} found out that {s} brother had lied",
    ),
    "afraid": (
        "{n} hid under the bed during the storm",
        "{n} heard strange steps in the dark",
        "{n} trembled at the top of the ladder",
        "{n} ran away from the snake",
        "{n} screamed when the spider moved",
        "{n} did not dare to open the cellar door",
    ),
}

TOPICS: dict[str, tuple[str, ...]] = {
    topic: tuple(words.split(", "))
    for topic, words in {
        "sport": "match, goal, coach, team, referee, stadium, league, striker",
        "food": "recipe, sauce, oven, chef, bread, cheese, flour, pasta",
        "music": "song, concert, album, choir, melody, orchestra, singer, tune",
        "money": "bank, price, stock, tax, loan, profit, budget, salary",
        "travel": "ticket, airport, passport, suitcase, tourist, map, flight, cruise",
        "health": "doctor, hospital, fever, medicine, patient, surgery, flu, clinic",
    }.items()
}  # fmt: skip
DEPARTMENTS: dict[str, tuple[str, ...]] = {
    "tool": ("tool",),
    "food": ("fruit", "vegetable", "drink"),
    "garment": ("garment",),
    "music": ("instrument",),
}

# (cause, effect) pairs: what leads to what in this world.
SCRIPTS: tuple[tuple[str, str], ...] = (
    ("{n} was hungry", "{n} made a sandwich"),
    ("{n} was thirsty", "{n} drank a glass of water"),
    ("{n} was very tired", "{n} went to bed early"),
    ("{n} forgot {s} umbrella", "{n} got wet in the rain"),
    ("{n} dropped the glass", "the glass broke"),
    ("{n} missed the bus", "{n} was late for work"),
    ("{n} studied hard for the test", "{n} got a good grade"),
    ("{n} ate too much cake", "{n} had a stomach ache"),
    ("{n} left the window open", "the room became cold"),
    ("{n} lost {s} keys", "{n} could not open the door"),
    ("{n} turned on the heater", "the room became warm"),
    ("{n} watered the plants every day", "the plants grew tall"),
    ("{n} stepped on a nail", "{n} hurt {s} foot"),
    ("{n} touched the hot stove", "{n} burned {s} hand"),
    ("{n} told a funny joke", "everybody laughed"),
    ("{n} stayed in the sun too long", "{n} got a sunburn"),
    ("{n} drove too fast", "the police stopped {n}"),
    ("{n} put the ice cream in the sun", "the ice cream melted"),
    ("{n} put the water in the freezer", "the water turned into ice"),
    ("{n} had a fever", "{n} called the doctor"),
    ("{n} watched a sad film", "{n} cried"),
    ("{n} planted seeds in spring", "flowers grew in the garden"),
    ("{n} slipped on the ice", "{n} broke {s} leg"),
    ("{n} washed the car", "the car was shiny"),
    ("{n} ate the rotten fish", "{n} was sick all night"),
    ("{n} put too much salt in the soup", "nobody wanted the soup"),
    ("{n} found a wallet and returned it", "the owner gave {n} a reward"),
    ("{n} swam in the cold lake", "{n} caught a cold"),
    ("{n} parked in the wrong place", "{n} got a fine"),
    ("{n} bought a lottery ticket", "{n} won a lot of money"),
    ("{n} forgot the cake in the oven", "the cake was black"),
)  # fmt: skip

# word -> {meaning: predicates in which the word has it}
SENSES: dict[str, dict[str, tuple[str, ...]]] = {
    "bank": {
        "a house for money": (
            "put {s} money in the bank",
            "asked the bank for a loan",
            "opened an account at the bank",
            "paid the bank in cash",
        ),
        "the side of a river": (
            "sat on the bank of the river",
            "fished from the bank",
            "swam to the other bank",
            "found a boat on the muddy bank",
        ),
    },
    "bat": {
        "an animal that flies": (
            "saw a bat in the cave",
            "heard a bat fly at night",
            "read that a bat sleeps upside down",
            "found a bat with soft wings",
        ),
        "a stick for games": (
            "hit the ball with a bat",
            "swung the wooden bat",
            "bought a bat for the baseball team",
            "broke the bat in the match",
        ),
    },
    "bark": {
        "the skin of a tree": (
            "cut a heart into the bark",
            "touched the rough bark of the oak",
            "peeled the bark off the tree",
            "saw moss on the bark",
        ),
        "the sound of a dog": (
            "heard the bark of a dog",
            "was woken by a loud bark",
            "knew the puppy by its bark",
            "feared the dog's angry bark",
        ),
    },
    "crane": {
        "a bird": (
            "saw a crane fly over the lake",
            "fed the crane at the zoo",
            "watched a crane build its nest",
            "drew a crane with long legs",
        ),
        "a machine": (
            "lifted the steel with a crane",
            "drove the crane at the building site",
            "repaired the motor of the crane",
            "saw a crane carry bricks",
        ),
    },
    "nail": {
        "a metal pin": (
            "hit the nail with a hammer",
            "hung the picture on a nail",
            "pulled a rusty nail out of the board",
            "fixed the shelf with a nail",
        ),
        "a part of a finger": (
            "painted a nail pink",
            "broke a nail on {s} thumb",
            "cut the nail of {s} little finger",
            "bit {s} nail nervously",
        ),
    },
    "match": {
        "a game": (
            "won the tennis match",
            "watched the match at the stadium",
            "scored twice in the match",
            "played a match against the champions",
        ),
        "a stick that makes fire": (
            "lit the candle with a match",
            "struck a match in the dark",
            "burned {s} thumb with a match",
            "started the fire with one match",
        ),
    },
    "ring": {
        "a piece of jewellery": (
            "wore a gold ring",
            "gave {s} wife a ring",
            "lost the diamond ring",
            "put the ring on {s} finger",
        ),
        "the sound of a bell": (
            "heard the ring of the telephone",
            "woke at the ring of the alarm",
            "waited for the ring of the door bell",
            "answered at the second ring",
        ),
    },
    "mouse": {
        "a small animal": (
            "saw a mouse eat the cheese",
            "watched the cat chase a mouse",
            "caught a mouse in the cellar",
            "heard a mouse squeak",
        ),
        "a part of a computer": (
            "clicked with the mouse",
            "bought a keyboard and a mouse",
            "moved the mouse across the screen",
            "connected the mouse to the computer",
        ),
    },
    "key": {
        "a thing that opens a lock": (
            "opened the door with a key",
            "lost the key to the house",
            "turned the key in the lock",
            "hid the key under the mat",
        ),
        "a part of a piano": (
            "pressed a black key of the piano",
            "cleaned every white key of the organ",
            "played the song with one key",
            "hit the wrong key at the concert",
        ),
    },
    "letter": {
        "a message": (
            "wrote a letter to {s} aunt",
            "put a stamp on the letter",
            "sent the letter by post",
            "opened the letter from {s} friend",
        ),
        "a sign of the alphabet": (
            "could not read the first letter of the word",
            "learned the letter b at school",
            "forgot a letter when spelling the word",
            "wrote the letter x on the blackboard",
        ),
    },
    "pen": {
        "a thing to write with": (
            "wrote {s} name with a pen",
            "filled the pen with ink",
            "borrowed a pen to sign the paper",
            "dropped {s} pen on the desk",
        ),
        "a place for animals": (
            "kept the pigs in a pen",
            "led the sheep into the pen",
            "fed the goats in the pen",
            "built a pen for the cows",
        ),
    },
    "star": {
        "a light in the sky": (
            "saw a star through the telescope",
            "counted one star after another in the night sky",
            "looked at the brightest star of the night",
            "wished upon a star",
        ),
        "a famous person": (
            "met a film star",
            "took a picture with the star of the show",
            "dreamed of being a pop star",
            "asked the star for an autograph",
        ),
    },
}


def fill(pattern: str, name: str) -> str:
    """The pattern said about `name`: slots {n}, {p} (he/she) and {s} (his/her)."""
    female = name in WOMEN
    return pattern.format(n=name, p="she" if female else "he", s="her" if female else "his")


def pronoun(name: str) -> str:
    return "she" if name in WOMEN else "he"


def a(noun: str) -> str:
    """The noun phrase with its article: "a hat", "an apple", "some tea"."""
    if noun in COUNTLESS:
        return f"some {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    """The plural of a kind or of a word in `KINDS`: "vehicles", "cherries"."""
    if noun[-1] == "y" and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh", "ato")):
        return noun + "es"
    return noun + "s"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def two(rng: Random, items) -> tuple:
    """Two different items, in random order."""
    first, second = rng.sample(list(items), 2)
    return first, second
