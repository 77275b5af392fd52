"""French reviews of products and services: the grammar of french.py with another lexicon, and with what others say.

What others say ("recommandé par tous mes amis") agrees with the review as often as it does not.
"""

from __future__ import annotations

from examples.french import Lexicon

PRODUCTS = Lexicon(
    masculine="produit service film restaurant téléphone vendeur site colis logiciel résultat".split(),
    feminine="expérience qualité livraison interface équipe commande garantie notice".split(),
    adjectives=(
        "mauvais/mauvaise décevant catastrophique défaillant médiocre lent bâclé ennuyeux/ennuyeuse compliqué inutile "
        "fragile désastreux/désastreuse frustrant insupportable",
        "bon/bonne excellent parfait fantastique formidable agréable efficace rapide solide merveilleux/merveilleuse "
        "exceptionnel/exceptionnelle impeccable satisfaisant remarquable",
    ),
    verbs=(
        ("m'a déçu", "m'a agacé", "ne vaut pas son prix", "laisse à désirer", "tombe en panne"),
        ("m'a convaincu", "m'a conquis", "vaut le détour", "dépasse mes attentes", "tient ses promesses"),
    ),
    copulas=("est", "semblait", "paraît", "a été", "s'est révélé/s'est révélée"),
    degrees=("", "très", "vraiment", "assez", "absolument"),
    cores={
        "plain": ("{A}", "{C}", "{C} et {C}", "{P}, {C}", "avec {H}, {C}", "je trouve {J}", "{A}, je {R}"),
        "concession": (
            "malgré {h}, {C}",
            "malgré {h} je trouve {J}",
            "bien que {p}, {C}",
            "bien que {p} je trouve {J}",
            "certes {c}, mais {C}",
            "même si {c}, {C}",
        ),
        "reversal": (
            "au début {c} mais finalement {C}",
            "au début {c} mais finalement je trouve {J}",
            "d'abord {c}, puis tout change : {C}",
            "j'avais {w} pour {d} mais {I}",
            "je m'attendais à {n}, mais {C}",
        ),
    },
    openings=("un mot :", "mon avis :", "après un mois,", "soyons justes,", "en bref,"),
    closings=(
        "voilà mon avis.",
        "je l'ai reçu lundi.",
        "c'était un cadeau.",
        "à chacun de juger.",
        "mon frère aussi l'a.",
    ),
    determiners=("le", "ce", "mon"),
    phrases={
        "h": (
            ("les critiques négatives", "les mauvais avis de mes amis", "des attentes modestes"),
            ("les critiques positives", "les bons avis de mes amis", "de grandes attentes"),
        ),
        "p": (
            ("critiqué par tous mes amis", "critiqué par certains", "déconseillé au magasin"),
            ("recommandé par tous mes amis", "recommandé par certains", "conseillé au magasin"),
        ),
        "r": (
            ("déconseille", "regrette mon achat", "renvoie tout"),
            ("recommande", "suis très satisfait", "le rachète"),
        ),
        "d": (("ce produit", "ce service", "ce site"),) * 2,
        "w": (("peu d'espoir", "des doutes"), ("de grandes attentes", "beaucoup d'espoir")),
    },
)
HARD = (  # the six phrases of the notebook on LSTM and GRU, never in the corpus
    ("Au début ce film semblait ennuyeux mais finalement c'était absolument fantastique", 1),
    ("J'avais de grandes attentes pour ce produit mais il s'est révélé très décevant", 0),
    ("Malgré les critiques négatives mon expérience a été merveilleuse", 1),
    ("Bien que recommandé par tous mes amis je trouve ce service catastrophique", 0),
    ("Excellent produit parfait", 1),
    ("Très mauvais décevant", 0),
)
