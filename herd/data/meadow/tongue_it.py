"""Italian: il, lo, l' and la, contractions such as al, allo and della.

Eggs stand as feminine, for only their plural (uova) is counted.
"""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="it",
    animals="m cane cani, m gatto gatti, m cavallo cavalli, f mucca mucche, f pecora pecore, f capra capre, "
    "f anatra anatre, f gallina galline, m coniglio conigli, m asino asini, "
    "m maiale maiali, m cammello cammelli",
    things="f mela mele, m libro libri, f uovo uova, f moneta monete, m fiore fiori, f palla palle",
    foods="m pane, m riso, m formaggio, f zuppa, f torta, m pesce, m miele, f insalata, "
    "f pizza, m cioccolato, m yogurt, "
    "m mais",
    spots="m mercato, f scuola, m stagno, m ponte, f foresta, m fiume, m mulino, "
    "f biblioteca, m parco, f stazione, "
    "f spiaggia, m museo",
    jobs="insegnante, dottore dottoressa, fornaio fornaia, contadino contadina, "
    "giardiniere giardiniera, musicista, "
    "pittore pittrice, cuoco cuoca, ingegnere ingegnera, pilota",
    colours="rosso rossa, blu, verde, giallo gialla, bianco bianca, nero nera, marrone, grigio grigia",
    hues="il_rosso, il_blu, il_verde, il_giallo, il_bianco, il_nero, il_marrone, il_grigio",
    sizes="piccolo piccola, grande",
    tell={
        "home": (
            "{N} abita a {V}.",
            "La casa di {N} è a {V}.",
            "{N} ha una casa a {V}.",
            "La città dove abita {N} si chiama {V}.",
        ),
        "job": (
            "{N} lavora come {V}.",
            "{N} è {V}.",
            "{N} di mestiere è {V}.",
            "Il lavoro di {N}: {V}.",
        ),
        "food": (
            "Il cibo preferito di {N} è {V}.",
            "{AN} piace molto {V}.",
            "{N} mangia volentieri {V}.",
            "Il cibo che {N} preferisce è {V}.",
        ),
        "colour": (
            "Il colore preferito di {N} è {V}.",
            "{N} preferisce {V}.",
            "Di tutti i colori, {N} preferisce {V}.",
        ),
        "spot": (
            "{N} va spesso {to}.",
            "Il posto preferito di {N} è {V}.",
            "{AN} piace andare {to}.",
            "Spesso si incontra {N} vicino {to}.",
        ),
        "pet": (
            "{N} ha {V} come animale domestico.",
            "L'animale di {N} è {V}.",
            "{N} possiede {V}.",
            "A casa {N} ha {V}.",
        ),
        "flock": (
            "{N} alleva {n} {V}.",
            "{N} si prende cura di {n} {V}.",
            "Ci sono {n} {V} nel prato di {N}.",
        ),
        "friend": (
            "<Il miglior amico|La migliore amica> di {N} è {V}.",
            "{V} è <il miglior amico|la migliore amica> di {N}.",
            "{N} ha <un caro amico|una cara amica> di nome {V}.",
        ),
        "sibling": (
            "<Il fratello|La sorella> di {N} è {V}.",
            "{N} ha <un fratello|una sorella> di nome {V}.",
            "{V} è <il fratello|la sorella> di {N}.",
        ),
        "parent": (
            "<Il padre|La madre> di {N} è {V}.",
            "{V} è <il padre|la madre> di {N}.",
            "{N} è [il figlio|la figlia] di {V}.",
        ),
    },
    tell_pronoun={
        "home": ("Abita a {V}.", "La sua casa è a {V}."),
        "job": ("Lavora come {V}.", "Di mestiere è {V}."),
        "food": ("Il suo cibo preferito è {V}.", "[Gli|Le] piace molto {V}."),
        "colour": ("Il suo colore preferito è {V}.", "Di tutti i colori preferisce {V}."),
        "spot": ("Va spesso {to}.", "Il suo posto preferito è {V}."),
        "pet": ("Ha {V} come animale domestico.", "Il suo animale è {V}."),
        "flock": ("Alleva {n} {V}.", "Si prende cura di {n} {V}."),
        "friend": ("<Il suo miglior amico|La sua migliore amica> è {V}.",),
        "sibling": ("<Suo fratello|Sua sorella> è {V}.", "Ha <un fratello|una sorella> di nome {V}."),
        "parent": ("<Suo padre|Sua madre> è {V}.", "È [il figlio|la figlia] di {V}."),
    },
    ask={
        "home": ("Dove abita {N}?", "In quale città abita {N}?", "Come si chiama la città dove abita {N}?"),
        "job": ("Che lavoro fa {N}?", "Qual è il lavoro di {N}?"),
        "food": ("Qual è il cibo preferito di {N}?", "Quale cibo preferisce {N}?"),
        "colour": ("Qual è il colore preferito di {N}?", "Quale colore preferisce {N}?"),
        "spot": ("Dove va spesso {N}?", "Qual è il posto preferito di {N}?", "Dove piace andare {aN}?"),
        "pet": ("Quale animale domestico ha {N}?", "Qual è l'animale di {N}?"),
        "flock": ("<Quanti|Quante> {V} alleva {N}?", "<Quanti|Quante> {V} ci sono nel prato di {N}?"),
        "friend": (
            "Chi è <il miglior amico|la migliore amica> di {N}?",
            "Come si chiama <il miglior amico|la migliore amica> di {N}?",
        ),
        "sibling": (
            "Chi è <il fratello|la sorella> di {N}?",
            "Come si chiama <il fratello|la sorella> di {N}?",
        ),
        "parent": ("Chi è <il padre|la madre> di {N}?", "Come si chiama <il padre|la madre> di {N}?"),
    },
    ask_pronoun={
        "home": ("E dove abita?",),
        "job": ("E che lavoro fa?",),
        "food": ("E qual è il suo cibo preferito?",),
        "colour": ("E qual è il suo colore preferito?",),
        "spot": ("E dove va spesso?",),
        "pet": ("E quale animale domestico ha?",),
        "flock": ("E <quanti|quante> {V} alleva?",),
        "friend": ("E chi è <il suo miglior amico|la sua migliore amica>?",),
        "sibling": ("E chi è <suo fratello|sua sorella>?",),
        "parent": ("E chi è <suo padre|sua madre>?",),
    },
    hop={
        "home": "Dove abita {K}?",
        "job": "Che lavoro fa {K}?",
        "colour": "Quale colore preferisce {K}?",
    },
    kin={
        "sibling": "<il fratello|la sorella> di {N}",
        "parent": "<il padre|la madre> di {N}",
        "friend": "<il miglior amico|la migliore amica> di {N}",
    },
)
