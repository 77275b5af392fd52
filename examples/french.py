"""A small grammar of French film reviews in which the order of the words decides.

A concession or a reversal holds a good half and a bad half, and the main clause decides:
"malgré une fin ratée, le film est superbe" is praise, "malgré une fin superbe, le film est raté" is not. A negation
turns its clause round. Good and bad words take the same places equally often, so that a bag of words has only the
plain sentences to learn from.

    sentence   = opening? core closing?
    core       = plain | concession | reversal
    clause(s)  = the noun predicate(s) | on y trouve noun(s)
    noun(s)    = a noun adjective(s) | a noun qui predicate(s)
    predicate  = est très adjective(s) | n'est pas adjective(not s) | verb(s)

The grammar is for any `Lexicon`: here that of films, in products.py that of products and services.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

PLAIN, NEGATED = 0.2, 0.2  # how many sentences are plain, and how many predicates negated


class Review(NamedTuple):
    text: str
    label: int  # 1: praise
    kind: str = ""  # the rule of the grammar that made it


class Lexicon(NamedTuple):
    """Words of a subject. Pairs are bad and good; a core's capital letters agree with the label, small ones do not."""

    masculine: list[str]  # nouns
    feminine: list[str]
    adjectives: tuple[str, str]  # masculine, with /feminine where that is not made with an e
    verbs: tuple[tuple[str, ...], tuple[str, ...]]
    copulas: tuple[str, ...]  # with /feminine where that differs
    degrees: tuple[str, ...]
    cores: dict[str, tuple[str, ...]]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    determiners: tuple[str, ...] = ("le",)
    phrases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # by the letter that stands for them in a core


MASCULINE = "film scénario rythme décor dialogue montage dénouement récit casting humour épilogue".split()
FEMININE = "musique fin photographie réalisation scène distribution histoire intrigue interprétation ambiance".split()
ADJECTIVES = (  # bad, good; feminine where it is not made with an e
    "raté fade lourd prévisible banal confus décevant médiocre pénible bâclé interminable maladroit insupportable "
    "ridicule ennuyeux/ennuyeuse creux/creuse poussif/poussive artificiel/artificielle",
    "brillant superbe passionnant touchant captivant réussi original drôle subtil élégant émouvant remarquable "
    "splendide magnifique inventif/inventive savoureux/savoureuse audacieux/audacieuse gracieux/gracieuse",
)
VERBS = (
    ("m'a ennuyé", "m'a agacé", "m'a déçu", "tourne en rond", "sonne faux", "manque de souffle", "laisse indifférent"),
    ("m'a ému", "m'a conquis", "m'a enchanté", "vaut le détour", "fait mouche", "tient ses promesses", "sort du lot"),
)
COPULAS = ("est", "reste", "paraît", "semble")
DEGREES = ("", "très", "vraiment", "assez", "franchement", "plutôt")
NEGATIONS = ("n'est pas", "n'est jamais", "n'est en rien", "est loin d'être", "est tout sauf")
OPENINGS = ("vu hier soir :", "un mot sur ce film :", "mon avis :", "après réflexion,", "soyons justes,", "en bref,")
CLOSINGS = (
    "voilà mon avis.",
    "je l'ai vu en salle avec des amis.",
    "la séance durait deux heures.",
    "ma sœur l'a vu aussi.",
    "il sort en salle mercredi.",
    "à chacun de juger.",
)
CORES = {
    "plain": ("{C}", "{C} et {C}", "non seulement {C}, mais en plus {C}", "{C}, d'autant plus que {C}"),
    "concession": (
        "malgré {n}, {C}",
        "{C}, malgré {n}",
        "même si {c}, {C}",
        "{C}, même si {c}",
        "certes {c}, mais {C}",
        "{C}, en dépit d'{n}",
    ),
    "reversal": (
        "au début {c}, mais finalement {C}",
        "{C}, alors qu'au début {c}",
        "je m'attendais à {n}, mais {C}",
        "on nous promettait {n}, or {C}",
        "d'abord {c}, puis tout change : {C}",
    ),
}
HARD = (  # written by hand, never in the corpus
    ("malgré une fin ratée, le film est superbe.", 1),
    ("malgré une fin superbe, le film est raté.", 0),
    ("le film est superbe, malgré une fin ratée.", 1),
    ("le film est raté, malgré une fin superbe.", 0),
    ("au début le récit semble passionnant, mais finalement le récit est ennuyeux.", 0),
    ("au début le récit semble ennuyeux, mais finalement le récit est passionnant.", 1),
    ("le scénario n'est pas médiocre.", 1),
    ("l'intrigue est loin d'être captivante.", 0),
    ("l'humour n'est jamais lourd et la musique n'est en rien banale.", 1),
    ("certes le décor est magnifique, mais l'histoire n'est pas touchante.", 0),
    ("même si le montage n'est pas vraiment réussi, l'ambiance m'a conquis.", 1),
    ("je m'attendais à un film drôle, mais l'humour sonne faux.", 0),
    ("on nous promettait une histoire banale, or l'intrigue est tout sauf prévisible.", 1),
    ("d'abord le casting m'a enchanté, puis tout change : le rythme manque de souffle.", 0),
)


FILMS = Lexicon(MASCULINE, FEMININE, ADJECTIVES, VERBS, COPULAS, DEGREES, CORES, OPENINGS, CLOSINGS)


def adjective(draw: random.Random, of: Lexicon, label: int, feminine: bool) -> str:
    masculine, _, form = draw.choice(of.adjectives[label].split()).partition("/")
    if not feminine:
        return masculine
    return form or (masculine if masculine.endswith("e") else f"{masculine}e")


def predicate(draw: random.Random, of: Lexicon, label: int, feminine: bool) -> str:
    if draw.random() < NEGATED:
        return f"{draw.choice(NEGATIONS)} {adjective(draw, of, 1 - label, feminine)}"
    if draw.random() < 0.3:
        return draw.choice(of.verbs[label])
    masculine, _, form = draw.choice(of.copulas).partition("/")
    copula = form if feminine and form else masculine
    return " ".join(f"{copula} {draw.choice(of.degrees)} {adjective(draw, of, label, feminine)}".split())


def noun(draw: random.Random, of: Lexicon, label: int) -> str:
    feminine = draw.random() < 0.5
    words = f"{'une' if feminine else 'un'} {draw.choice(of.feminine if feminine else of.masculine)}"
    if draw.random() < 0.5:
        return f"{words} {adjective(draw, of, label, feminine)}"
    return f"{words} qui {predicate(draw, of, label, feminine)}"


def determined(determiner: str, name: str, feminine: bool) -> str:
    """A noun after le, ce or mon, in the form that it asks for."""
    vowel = name[0] in "aeéhi"
    if determiner == "le":
        return f"l'{name}" if vowel else f"{'la' if feminine else 'le'} {name}"
    if determiner == "ce":
        return f"{'cette' if feminine else 'cet' if vowel else 'ce'} {name}"
    return f"{'ma' if feminine and not vowel else 'mon'} {name}"


def clause(draw: random.Random, of: Lexicon, label: int) -> str:
    if draw.random() < 0.2:
        return f"on y trouve {noun(draw, of, label)}"
    feminine = draw.random() < 0.5
    name = draw.choice(of.feminine if feminine else of.masculine)
    determiner = draw.choice(of.determiners) if len(of.determiners) > 1 else of.determiners[0]
    return f"{determined(determiner, name, feminine)} {predicate(draw, of, label, feminine)}"


def short(draw: random.Random, of: Lexicon, label: int) -> str:
    """A degree and an adjective, or an adjective on either side of a noun."""
    if draw.random() < 0.5:
        return f"très {adjective(draw, of, label, False)} {adjective(draw, of, label, False)}"
    return f"{adjective(draw, of, label, False)} {draw.choice(of.masculine)} {adjective(draw, of, label, False)}"


def judged(draw: random.Random, of: Lexicon, label: int) -> str:
    """A noun and an adjective, or what it was."""
    if draw.random() < 0.5:
        return " ".join(f"que c'était {draw.choice(of.degrees)} {adjective(draw, of, label, False)}".split())
    feminine = draw.random() < 0.5
    name = draw.choice(of.feminine if feminine else of.masculine)
    return f"{determined(draw.choice(of.determiners), name, feminine)} {adjective(draw, of, label, feminine)}"


def of_it(draw: random.Random, of: Lexicon, label: int) -> str:
    return f"il {predicate(draw, of, label, False)}"


MADE = {"c": clause, "n": noun, "a": short, "j": judged, "i": of_it}  # by the letter that stands for them in a core


def sentence(draw: random.Random, label: int, of: Lexicon = FILMS) -> Review:
    """One review with this label, by the grammar above."""
    kind = "plain" if draw.random() < PLAIN else draw.choice(("concession", "reversal"))
    core = draw.choice(of.cores[kind])
    for letter in (*MADE, *of.phrases):
        for name, side in ((letter.upper(), label), (letter, 1 - label)):
            while f"{{{name}}}" in core:
                made = draw.choice(of.phrases[letter][side]) if letter in of.phrases else MADE[letter](draw, of, side)
                core = core.replace(f"{{{name}}}", made, 1)
    opening = f"{draw.choice(of.openings)} " if draw.random() < 0.3 else ""
    closing = f" {draw.choice(of.closings)}" if draw.random() < 0.3 else ""
    return Review(f"{opening}{core}.{closing}", label, kind)


def reviews(count: int, seed: int, of: Lexicon = FILMS, without: Iterable[tuple[str, int]] = HARD) -> list[Review]:
    """So many different reviews, good and bad in turn, none of them in `without`."""
    draw, seen, made = random.Random(seed), {text for text, _ in without}, []
    while len(made) < count:
        review = sentence(draw, len(made) % 2, of)
        if review.text not in seen:
            seen.add(review.text)
            made.append(review)
    return made
