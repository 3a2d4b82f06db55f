"""The small world that the embedded tasks speak about: people, things, places, scripts.

Everything here was written for this project.  Sentences are patterns with the slots
``{n}`` (a name), ``{p}`` (its pronoun) and ``{s}`` (its possessive); `fill` replaces them.
"""

from __future__ import annotations

from random import Random

WOMEN = [
    "Anna",
    "Beth",
    "Carla",
    "Dora",
    "Emma",
    "Fiona",
    "Grace",
    "Helen",
    "Irene",
    "Julia",
    "Karen",
    "Laura",
    "Maria",
    "Nina",
    "Olga",
    "Paula",
    "Rosa",
    "Sara",
    "Tina",
    "Wendy",
]
MEN = [
    "Adam",
    "Ben",
    "Carl",
    "David",
    "Eric",
    "Frank",
    "George",
    "Henry",
    "Ivan",
    "Jack",
    "Kevin",
    "Leo",
    "Martin",
    "Noah",
    "Oscar",
    "Paul",
    "Robert",
    "Simon",
    "Tom",
    "Victor",
]
PEOPLE = (*WOMEN, *MEN)

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split(", "))
    for kind, words in {
        "animal": "dog, cat, horse, cow, sheep, goat, pig, lion, tiger, rabbit, fox, donkey",
        "bird": "robin, eagle, duck, goose, parrot, owl, crow, swan",
        "fruit": "apple, pear, peach, lemon, orange, plum, cherry, mango, melon",
        "vegetable": "carrot, onion, potato, cabbage, pepper, cucumber, leek, turnip",
        "drink": "coffee, tea, milk, juice, lemonade, cocoa, cider",
        "tool": "hammer, saw, drill, shovel, rake, wrench, axe, chisel",
        "piece of furniture": "table, chair, sofa, desk, bed, shelf, wardrobe, stool",
        "vehicle": "car, bus, truck, van, tractor, motorcycle, taxi, tram",
        "piece of clothing": "shirt, coat, jacket, scarf, hat, sweater, skirt, sock",
        "instrument": "piano, guitar, violin, flute, trumpet, cello, harp, drum",
        "flower": "rose, tulip, daisy, lily, orchid, violet, poppy, iris",
        "toy": "doll, kite, puzzle, balloon, yo-yo, teddy bear, marble, rocking horse",
    }.items()
}
COUNTLESS = frozenset(KINDS["drink"])  # said with "some", not with "a"
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}

PLACES = [
    "in the garden",
    "in the kitchen",
    "at the market",
    "at school",
    "in the park",
    "at the station",
    "in the library",
    "on the beach",
    "in the village",
    "at the office",
    "in the museum",
    "at the harbour",
]
TIMES = [
    "yesterday",
    "last week",
    "on Monday",
    "on Friday",
    "this morning",
    "last night",
    "in May",
    "in winter",
    "on Sunday",
    "two days ago",
    "in summer",
    "after lunch",
]

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

GOOD = [
    "great",
    "wonderful",
    "lovely",
    "excellent",
    "perfect",
    "charming",
    "brilliant",
    "delightful",
    "superb",
    "friendly",
    "fantastic",
    "pleasant",
    "amazing",
]
BAD = [
    "awful",
    "terrible",
    "horrible",
    "boring",
    "dreadful",
    "poor",
    "disappointing",
    "rude",
    "nasty",
    "miserable",
    "unpleasant",
    "dull",
    "weak",
]
ASPECTS: dict[str, tuple[str, ...]] = {
    "film": ("story", "acting", "ending", "music", "camera work"),
    "book": ("plot", "writing", "hero", "first chapter", "cover"),
    "restaurant": ("food", "soup", "service", "dessert", "wine list"),
    "phone": ("screen", "battery", "sound", "keyboard", "design"),
    "concert": ("band", "singer", "sound", "light show", "crowd"),
    "hotel": ("room", "bed", "breakfast", "pool", "view", "staff", "bathroom", "lobby"),
}
PRAISE = (
    "I loved every minute of it", "I would do it again", "it made my day", "I am so glad I came",
    "it was worth every penny", "I cannot wait to come back", "everyone enjoyed it",
)  # fmt: skip
BLAME = (
    "I hated every minute of it", "I will never do it again", "it ruined my day",
    "I am sorry I came", "it was a waste of money", "I wanted to leave at once",
    "everyone complained",
)  # fmt: skip

EMOTIONS: dict[str, tuple[str, ...]] = {
    "happy": (
        "{n} won the first prize",
        "{n} got a puppy for {s} birthday",
        "{n} passed the exam",
        "{n} danced around the room",
        "{n} got a letter from {s} best friend",
        "{n} smiled all day long",
        "{n} heard that school was closed for the holidays",
        "{n} laughed and sang on the way home",
        "{n} found {s} lost ring again",
    ),
    "sad": (
        "{n} cried because {s} cat had died",
        "{n} lost {s} best friend",
        "{n} failed the exam",
        "{n} had tears in {s} eyes",
        "{n} had to say goodbye to {s} family",
        "{n} missed {s} old home",
        "{n} was not invited to the party",
        "{n} sat alone and wept",
        "{n} saw that the old tree had been cut down",
    ),
    "angry": (
        "{n} shouted at the driver",
        "{n} slammed the door",
        "{n} saw that somebody had stolen {s} bike",
        "{n} threw the cup at the wall",
        "{n} yelled because the neighbours were so loud",
        "{n} found out that {s} brother had lied",
        "{n} clenched {s} fists",
        "{n} was cheated by the shopkeeper",
        "{n} stamped {s} foot",
    ),
    "afraid": (
        "{n} hid under the bed during the storm",
        "{n} heard strange steps in the dark",
        "{n} trembled at the top of the ladder",
        "{n} ran away from the snake",
        "{n} screamed when the spider moved",
        "{n} did not dare to open the cellar door",
        "{n} was lost in the dark forest",
        "{n} had a nightmare about monsters",
        "{n} saw a wolf behind the tent",
    ),
}

TOPICS: dict[str, tuple[str, ...]] = {
    topic: tuple(words.split(", "))
    for topic, words in {
        "sport": "match, goal, coach, team, referee, stadium, league, race, medal, striker",
        "food": "recipe, sauce, oven, chef, bread, cheese, spice, flour, pasta, kitchen",
        "music": "song, concert, album, choir, melody, orchestra, singer, guitar, band, tune",
        "money": "bank, price, stock, tax, loan, profit, market, budget, salary, investor",
        "travel": "ticket, airport, hotel, passport, suitcase, beach, tourist, map, flight, cruise",
        "health": "doctor, hospital, fever, medicine, vaccine, patient, surgery, flu, clinic, diet",
        "weather": "storm, rain, snow, cloud, wind, sunshine, fog, thunder, frost, forecast",
        "science": "laboratory, planet, telescope, atom, experiment, rocket, theory, fossil, cell, "
        "microscope",
    }.items()
}  # fmt: skip
DEPARTMENTS: dict[str, tuple[str, ...]] = {
    "garden centre": ("tool", "flower"),
    "grocery": ("fruit", "vegetable", "drink"),
    "home and fashion": ("piece of furniture", "piece of clothing"),
    "music and play": ("instrument", "toy"),
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
    ("{n} forgot to charge the phone", "the battery was empty"),
    ("{n} spilled ink on the shirt", "the shirt had a stain"),
    ("{n} fed the birds", "the birds came closer"),
    ("{n} pulled the dog's tail", "the dog barked at {n}"),
    ("{n} blew out the candle", "it became dark"),
    ("{n} put the ice cream in the sun", "the ice cream melted"),
    ("{n} put the water in the freezer", "the water turned into ice"),
    ("{n} kicked the ball at the house", "a window was smashed"),
    ("{n} had a toothache", "{n} went to the dentist"),
    ("{n} had a fever", "{n} called the doctor"),
    ("{n} saved money for a year", "{n} could buy a new bike"),
    ("{n} lost {s} job", "{n} had to look for work"),
    ("{n} heard a loud noise at night", "{n} woke up"),
    ("{n} watched a sad film", "{n} cried"),
    ("{n} ran a long race", "{n} was out of breath"),
    ("{n} practised the piano every day", "{n} played very well"),
    ("{n} burned the toast", "smoke filled the kitchen"),
    ("{n} planted seeds in spring", "flowers grew in the garden"),
    ("{n} skipped breakfast", "{n} was starving at noon"),
    ("{n} locked the cat outside", "the cat scratched at the door"),
    ("{n} shook the apple tree", "apples fell to the ground"),
    ("{n} left the tap open", "the bathroom was flooded"),
    ("{n} slipped on the ice", "{n} broke {s} leg"),
    ("{n} read a ghost story", "{n} could not sleep"),
    ("{n} washed the car", "the car was shiny"),
    ("{n} invited all {s} friends", "the house was full of people"),
    ("{n} helped the old lady", "the old lady thanked {n}"),
    ("{n} broke the law", "{n} was sent to prison"),
    ("{n} ate the rotten fish", "{n} was sick all night"),
    ("{n} chopped onions", "{p} had tears in {s} eyes"),
    ("{n} cut the string of the balloon", "the balloon flew away"),
    ("{n} put too much salt in the soup", "nobody wanted the soup"),
    ("{n} lit the fireplace", "the logs burned"),
    ("{n} lied to {s} mother", "{s} mother was angry"),
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
    "trunk": {
        "the nose of an elephant": (
            "saw the elephant lift its trunk",
            "gave a nut to the trunk of an elephant",
            "watched an elephant drink with its trunk",
            "touched the elephant's grey trunk",
        ),
        "the stem of a tree": (
            "leaned on the trunk of the oak",
            "climbed up the trunk",
            "sawed the trunk into logs",
            "tied a rope around the trunk of the pine",
        ),
    },
    "wave": {
        "moving water": (
            "jumped over a wave in the sea",
            "saw a wave hit the ship",
            "surfed on a high wave",
            "lost {s} shoes to a wave on the beach",
        ),
        "a greeting": (
            "said goodbye with a wave",
            "gave {s} friend a wave",
            "greeted the neighbour with a wave",
            "smiled at us with a short wave of {s} hand",
        ),
    },
    "spring": {
        "a season": (
            "planted roses in spring",
            "was born in spring",
            "looked forward to spring after the winter",
            "saw the first tulips of spring",
        ),
        "a piece of metal": (
            "fixed the spring of the old clock",
            "bent the steel spring",
            "felt a broken spring in the mattress",
            "pressed the metal spring",
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
    "palm": {
        "a tree": (
            "sat under a palm on the beach",
            "picked a coconut from the palm",
            "climbed a tall palm",
            "planted a palm on the island",
        ),
        "a part of the hand": (
            "held the coin in {s} palm",
            "hid the ring in {s} palm",
            "read the lines of {s} palm",
            "wiped {s} wet palm",
        ),
    },
    "fan": {
        "a person who admires": (
            "was a fan of the band",
            "asked as a fan for an autograph",
            "cheered like a true fan of the team",
            "met a fan of the singer",
        ),
        "a thing that makes wind": (
            "turned on the fan because it was hot",
            "cooled the room with a fan",
            "cleaned the blades of the fan",
            "plugged in the electric fan",
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
    "date": {
        "a fruit": (
            "ate a sweet date",
            "put a date into the cake",
            "picked a ripe date",
            "bought a dried date at the market",
        ),
        "a day of the year": (
            "forgot the date of the exam",
            "wrote the date on the form",
            "changed the date of the wedding",
            "marked the date in the calendar",
        ),
    },
    "seal": {
        "a sea animal": (
            "saw a seal swim in the sea",
            "watched the seal catch a fish",
            "photographed a seal on the ice",
            "fed the seal at the zoo",
        ),
        "a stamp on paper": (
            "put a seal on the contract",
            "broke the wax seal of the envelope",
            "saw the king's seal on the paper",
            "closed the document with a seal",
        ),
    },
    "chest": {
        "a box": (
            "opened the chest full of gold",
            "hid the treasure in a chest",
            "kept old clothes in a wooden chest",
            "closed the lid of the chest",
        ),
        "a part of the body": (
            "felt a pain in {s} chest",
            "crossed {s} arms over {s} chest",
            "had hair on {s} chest",
            "breathed deeply into {s} chest",
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
    """The plural of a kind or of a word in `KINDS`: "pieces of furniture", "cherries"."""
    if noun.startswith("piece of "):
        return "pieces" + noun.removeprefix("piece")
    irregular = {"goose": "geese", "sheep": "sheep", "shelf": "shelves", "violin": "violins"}
    if noun in irregular:
        return irregular[noun]
    if noun[-1] == "y" and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh", "ato", "ango")):
        return noun + "es"
    return noun + "s"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def two(rng: Random, items) -> tuple:
    """Two different items, in random order."""
    first, second = rng.sample(list(items), 2)
    return first, second
