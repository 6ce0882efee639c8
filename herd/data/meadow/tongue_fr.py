"""French: two genders, elision (l', d'), contractions au and du, partitive articles."""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="fr",
    animals="m chien chiens, m chat chats, m cheval chevaux, f vache vaches, "
    "m mouton moutons, f chèvre chèvres, "
    "m canard canards, f poule poules, m lapin lapins, m âne ânes, m cochon cochons, m chameau chameaux",
    things="f pomme pommes, m livre livres, m œuf œufs, f pièce pièces, f fleur fleurs, m ballon ballons",
    foods="m pain, m riz, m fromage, f soupe, m gâteau, m poisson, m miel, f salade, "
    "f pizza, m chocolat, m yaourt, m maïs",
    spots="m marché, f école, m étang, m pont, f forêt, f rivière, m moulin, f bibliothèque, "
    "m parc, f gare, f plage, "
    "m musée",
    jobs="professeur professeure, médecin, boulanger boulangère, fermier fermière, jardinier jardinière, "
    "musicien musicienne, peintre, cuisinier cuisinière, ingénieur ingénieure, pilote",
    colours="rouge, bleu bleue, vert verte, jaune, blanc blanche, noir noire, brun brune, gris grise",
    hues="le_rouge, le_bleu, le_vert, le_jaune, le_blanc, le_noir, le_brun, le_gris",
    sizes="petit petite, grand grande",
    tell={
        "home": (
            "{N} habite à {V}.",
            "La maison {deN} est à {V}.",
            "{N} a une maison à {V}.",
            "La ville où habite {N} s'appelle {V}.",
        ),
        "job": (
            "{N} travaille comme {V}.",
            "{N} est {V}.",
            "{N} est {V} de métier.",
            "Le métier {deN} : {V}.",
        ),
        "food": (
            "Le plat préféré {deN} est {V}.",
            "{N} préfère manger {part}.",
            "{N} aime surtout {V}.",
            "Ce {queN} aime manger, c'est {V}.",
        ),
        "colour": (
            "La couleur préférée {deN} est {V}.",
            "{N} préfère {V}.",
            "De toutes les couleurs, {N} préfère {V}.",
        ),
        "spot": (
            "{N} va souvent {to}.",
            "L'endroit préféré {deN} est {V}.",
            "{N} aime se promener près {of}.",
            "On rencontre souvent {N} près {of}.",
        ),
        "pet": (
            "{N} a {V} comme animal de compagnie.",
            "L'animal {deN} est {V}.",
            "{N} possède {V}.",
            "Chez {N}, il y a {V}.",
        ),
        "flock": (
            "{N} élève {n} {V}.",
            "{N} s'occupe de {n} {V}.",
            "Il y a {n} {V} dans le pré {deN}.",
        ),
        "friend": (
            "<Le meilleur ami|La meilleure amie> {deN} est {V}.",
            "{V} est <le meilleur ami|la meilleure amie> {deN}.",
            "{N} a pour <meilleur ami|meilleure amie> {V}.",
        ),
        "sibling": (
            "<Le frère|La sœur> {deN} est {V}.",
            "{N} a <un frère|une sœur> qui s'appelle {V}.",
            "{V} est <le frère|la sœur> {deN}.",
        ),
        "parent": (
            "<Le père|La mère> {deN} est {V}.",
            "{V} est <le père|la mère> {deN}.",
            "{N} est [le fils|la fille] {deV}.",
        ),
    },
    tell_pronoun={
        "home": ("[Il|Elle] habite à {V}.", "Sa maison est à {V}."),
        "job": ("[Il|Elle] travaille comme {V}.", "[Il|Elle] est {V}."),
        "food": ("Son plat préféré est {V}.", "[Il|Elle] préfère manger {part}."),
        "colour": ("Sa couleur préférée est {V}.", "De toutes les couleurs, [il|elle] préfère {V}."),
        "spot": ("[Il|Elle] va souvent {to}.", "Son endroit préféré est {V}."),
        "pet": ("[Il|Elle] a {V} comme animal de compagnie.", "Chez [lui|elle], il y a {V}."),
        "flock": ("[Il|Elle] élève {n} {V}.", "[Il|Elle] s'occupe de {n} {V}."),
        "friend": (
            "<Son meilleur ami|Sa meilleure amie> est {V}.",
            "[Il|Elle] a pour <meilleur ami|meilleure amie> {V}.",
        ),
        "sibling": ("<Son frère|Sa sœur> est {V}.", "[Il|Elle] a <un frère|une sœur> qui s'appelle {V}."),
        "parent": ("<Son père|Sa mère> est {V}.", "[Il|Elle] est [le fils|la fille] {deV}."),
    },
    ask={
        "home": (
            "Où habite {N} ?",
            "Dans quelle ville habite {N} ?",
            "Comment s'appelle la ville où habite {N} ?",
        ),
        "job": ("Quel est le métier {deN} ?", "Que fait {N} comme métier ?"),
        "food": ("Quel est le plat préféré {deN} ?", "Qu'est-ce {queN} préfère manger ?"),
        "colour": ("Quelle est la couleur préférée {deN} ?", "Quelle couleur préfère {N} ?"),
        "spot": (
            "Où va souvent {N} ?",
            "Quel est l'endroit préféré {deN} ?",
            "Où {N} aime-t-[il|elle] aller ?",
        ),
        "pet": ("Quel animal de compagnie a {N} ?", "Quel est l'animal {deN} ?"),
        "flock": ("Combien {deP} élève {N} ?", "Combien {deP} y a-t-il dans le pré {deN} ?"),
        "friend": (
            "Qui est <le meilleur ami|la meilleure amie> {deN} ?",
            "Comment s'appelle <le meilleur ami|la meilleure amie> {deN} ?",
        ),
        "sibling": ("Qui est <le frère|la sœur> {deN} ?", "Comment s'appelle <le frère|la sœur> {deN} ?"),
        "parent": ("Qui est <le père|la mère> {deN} ?", "Comment s'appelle <le père|la mère> {deN} ?"),
    },
    ask_pronoun={
        "home": ("Et où habite-t-[il|elle] ?",),
        "job": ("Et quel est son métier ?",),
        "food": ("Et quel est son plat préféré ?",),
        "colour": ("Et quelle est sa couleur préférée ?",),
        "spot": ("Et où va-t-[il|elle] souvent ?",),
        "pet": ("Et quel est son animal de compagnie ?",),
        "flock": ("Et combien {deP} élève-t-[il|elle] ?",),
        "friend": ("Et qui est <son meilleur ami|sa meilleure amie> ?",),
        "sibling": ("Et qui est <son frère|sa sœur> ?",),
        "parent": ("Et qui est <son père|sa mère> ?",),
    },
    hop={
        "home": "Où habite {K} ?",
        "job": "Que fait {K} comme métier ?",
        "colour": "Quelle couleur préfère {K} ?",
    },
    kin={
        "sibling": "<le frère|la sœur> {deN}",
        "parent": "<le père|la mère> {deN}",
        "friend": "<le meilleur ami|la meilleure amie> {deN}",
    },
)
