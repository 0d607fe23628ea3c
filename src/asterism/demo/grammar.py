"""English word forms for the built-in corpus: plurals, articles, verb forms. Regular rules, and the irregular words the lexicons use."""

from __future__ import annotations

import re

_ODD_PLURALS = (
    "child/children man/men woman/women person/people mouse/mice foot/feet tooth/teeth goose/geese leaf/leaves wolf/wolves "
    "knife/knives loaf/loaves shelf/shelves calf/calves scarf/scarves half/halves bacterium/bacteria nucleus/nuclei "
    "criterion/criteria stomach/stomachs phenomenon/phenomena spectrum/spectra alga/algae fungus/fungi larva/larvae "
    "supernova/supernovae nebula/nebulae sheep/sheep potato/potatoes tomato/tomatoes fisherman/fishermen postman/postmen "
    "midwife/midwives index/indices matrix/matrices"
)
_ODD_VERBS = (
    "be/was/been do/did/done have/had/had "
    "give/gave/given take/took/taken find/found/found make/made/made write/wrote/written read/read/read "
    "see/saw/seen show/showed/shown keep/kept/kept hold/held/held send/sent/sent bring/brought/brought lead/led/led "
    "fall/fell/fallen rise/rose/risen grow/grew/grown begin/began/begun break/broke/broken choose/chose/chosen draw/drew/drawn "
    "hear/heard/heard leave/left/left lose/lost/lost meet/met/met pay/paid/paid run/ran/run sell/sold/sold buy/bought/bought "
    "set/set/set put/put/put cut/cut/cut split/split/split spread/spread/spread teach/taught/taught tell/told/told "
    "undergo/underwent/undergone sink/sank/sunk sleep/slept/slept sing/sang/sung catch/caught/caught build/built/built "
    "bind/bound/bound feed/fed/fed hide/hid/hidden throw/threw/thrown ride/rode/ridden drive/drove/driven eat/ate/eaten "
    "drink/drank/drunk feel/felt/felt fly/flew/flown bend/bent/bent lend/lent/lent withdraw/withdrew/withdrawn shine/shone/shone "
    "swim/swam/swum wear/wore/worn sweep/swept/swept overwrite/overwrote/overwritten withhold/withheld/withheld "
    "override/overrode/overridden come/came/come go/went/gone arise/arose/arisen shed/shed/shed forget/forgot/forgotten "
    "stand/stood/stood"
)
_DOUBLED = (
    "admit refer transfer omit permit submit occur stop plan drop trap emit transmit log map strip trim swap debug chat knit chop "
    "stir plot control"
)
_PLURALS = {pair.partition("/")[0]: pair.partition("/")[2] for pair in _ODD_PLURALS.split()}
_PAST = {verb: tuple(forms) for verb, *forms in (word.split("/") for word in _ODD_VERBS.split())}
_DOUBLING = frozenset(_DOUBLED.split())
_A_DESPITE_VOWEL = re.compile(r"^(uni(?!n|m)|use|usu|ut[ei]|eu|one\b|once\b|ubiq)", re.IGNORECASE)
_AN_DESPITE_CONSONANT = re.compile(r"^(hour|hono|heir|honest|[FHLMNRSX](-|[A-Z]))")


def plural(noun: str) -> str:
    """`blood test` -> `blood tests`; only the last word changes."""
    head, _, last = noun.rpartition(" ")
    return f"{head} {_plural(last)}" if head else _plural(last)


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("sis"):
        return word[:-2] + "es"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + "s"


def article(phrase: str) -> str:
    """`a` or `an`, by the sound that `phrase` begins with."""
    if _AN_DESPITE_CONSONANT.match(phrase):
        return "an"
    return "an" if phrase[0].lower() in "aeiou" and not _A_DESPITE_VOWEL.match(phrase) else "a"


def third_person(verb: str) -> str:
    """`carry` -> `carries`."""
    if verb in ("be", "have"):
        return {"be": "is", "have": "has"}[verb]
    if re.search(r"(s|x|z|ch|sh|o)$", verb):
        return verb + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", verb) + "s"


def past(verb: str) -> str:
    """`carry` -> `carried`, `give` -> `gave`."""
    return _PAST[verb][0] if verb in _PAST else _regular_past(verb)


def participle(verb: str) -> str:
    """`carry` -> `carried`, `give` -> `given`."""
    return _PAST[verb][1] if verb in _PAST else _regular_past(verb)


def gerund(verb: str) -> str:
    """`make` -> `making`, `admit` -> `admitting`."""
    if verb in _DOUBLING or verb in ("put", "set", "cut", "run", "begin", "split", "swim", "forget"):
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    return re.sub(r"(?<=[^eoy])e$", "", verb) + "ing" if verb != "be" else "being"


def _regular_past(verb: str) -> str:
    if verb in _DOUBLING:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    return re.sub(r"(?<=[^aeiou])y$", "i", verb) + "ed"


def finite(verb: str, tense: str, many: bool) -> str:
    """The verb as it stands after its subject; `tense` is past, present, perfect, pluperfect, or a modal such as `may`."""
    if tense == "past":
        return ("were" if many else "was") if verb == "be" else past(verb)
    if tense == "present":
        return ("are" if verb == "be" else verb) if many else third_person(verb)
    if tense == "perfect":
        return f"{'have' if many else 'has'} {participle(verb)}"
    if tense == "pluperfect":
        return f"had {participle(verb)}"
    return f"{tense} {verb}"


def denied(verb: str, tense: str, many: bool) -> str:
    """The same, with `not`."""
    if tense == "past":
        return f"{'were' if many else 'was'} not" if verb == "be" else f"did not {verb}"
    if tense == "present":
        return f"{'are' if many else 'is'} not" if verb == "be" else f"{'do' if many else 'does'} not {verb}"
    helper, rest = finite(verb, tense, many).split(" ", 1)
    return f"{helper} not {rest}"


def capital(sentence: str) -> str:
    """First letter upper case, the rest untouched."""
    return sentence[:1].upper() + sentence[1:]
