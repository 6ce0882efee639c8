"""German: three genders, accusative and dative, contractions such as zum and beim."""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="de",
    animals="m Hund Hunde Hunden, f Katze Katzen Katzen, n Pferd Pferde Pferden, f Kuh Kühe Kühen, "
    "n Schaf Schafe Schafen, f Ziege Ziegen Ziegen, f Ente Enten Enten, n Huhn Hühner Hühnern, "
    "n Kaninchen Kaninchen Kaninchen, m Esel Esel Eseln, "
    "n Schwein Schweine Schweinen, n Kamel Kamele Kamelen",
    things="m Apfel Äpfel Äpfeln, n Buch Bücher Büchern, n Ei Eier Eiern, f Münze Münzen Münzen, "
    "f Blume Blumen Blumen, m Ball Bälle Bällen",
    foods="n Brot, m Reis, m Käse, f Suppe, m Kuchen, m Fisch, m Honig, m Salat, "
    "f Pizza, f Schokolade, m Joghurt, m Mais",
    spots="m Markt, f Schule, m Teich, f Brücke, m Wald, m Fluss, f Mühle, f Bibliothek, "
    "m Park, m Bahnhof, m Strand, "
    "n Museum",
    jobs="Lehrer Lehrerin, Arzt Ärztin, Bäcker Bäckerin, Bauer Bäuerin, "
    "Gärtner Gärtnerin, Musiker Musikerin, "
    "Maler Malerin, Koch Köchin, Ingenieur Ingenieurin, Pilot Pilotin",
    colours="rot, blau, grün, gelb, weiß, schwarz, braun, grau",
    hues="Rot, Blau, Grün, Gelb, Weiß, Schwarz, Braun, Grau",
    sizes="klein, groß",
    tell={
        "home": (
            "{N} wohnt in {V}.",
            "Das Zuhause von {N} ist in {V}.",
            "{N} hat ein Haus in {V}.",
            "Der Ort, in dem {N} wohnt, heißt {V}.",
        ),
        "job": (
            "{N} arbeitet als {V}.",
            "{N} ist {V}.",
            "{N} ist von Beruf {V}.",
            "Der Beruf von {N} ist {V}.",
        ),
        "food": (
            "Das Lieblingsessen von {N} ist {V}.",
            "{N} isst am liebsten {V}.",
            "{G} Lieblingsessen ist {V}.",
            "Am liebsten isst {N} {V}.",
        ),
        "colour": (
            "Die Lieblingsfarbe von {N} ist {V}.",
            "{G} Lieblingsfarbe ist {V}.",
            "Von allen Farben mag {N} {V} am liebsten.",
        ),
        "spot": (
            "{N} geht oft {to}.",
            "Der Lieblingsort von {N} ist {V}.",
            "{N} spaziert gern {to}.",
            "Man trifft {N} oft {near}.",
        ),
        "pet": (
            "{N} hat {V} als Haustier.",
            "Das Haustier von {N} ist {nom}.",
            "{N} besitzt {V}.",
            "Zu Hause hat {N} {V}.",
        ),
        "flock": (
            "{N} hält {n} {V}.",
            "{N} kümmert sich um {n} {V}.",
            "{N} lebt mit {n} {obl} zusammen.",
            "Auf der Wiese von {N} leben {n} {V}.",
        ),
        "friend": (
            "<Der beste Freund|Die beste Freundin> von {N} ist {V}.",
            "{G} <bester Freund|beste Freundin> ist {V}.",
            "{N} ist am besten mit {V} befreundet.",
        ),
        "sibling": (
            "<Der Bruder|Die Schwester> von {N} ist {V}.",
            "{N} hat <einen Bruder|eine Schwester> namens {V}.",
            "{G} <Bruder|Schwester> heißt {V}.",
        ),
        "parent": (
            "<Der Vater|Die Mutter> von {N} ist {V}.",
            "{V} ist <der Vater|die Mutter> von {N}.",
            "{N} ist [der Sohn|die Tochter] von {V}.",
        ),
    },
    tell_pronoun={
        "home": ("[Er|Sie] wohnt in {V}.", "[Sein|Ihr] Zuhause ist in {V}."),
        "job": ("[Er|Sie] arbeitet als {V}.", "[Er|Sie] ist von Beruf {V}."),
        "food": ("[Er|Sie] isst am liebsten {V}.", "[Sein|Ihr] Lieblingsessen ist {V}."),
        "colour": ("[Seine|Ihre] Lieblingsfarbe ist {V}.", "Von allen Farben mag [er|sie] {V} am liebsten."),
        "spot": ("[Er|Sie] geht oft {to}.", "[Er|Sie] spaziert gern {to}."),
        "pet": ("[Er|Sie] hat {V} als Haustier.", "[Sein|Ihr] Haustier ist {nom}."),
        "flock": ("[Er|Sie] hält {n} {V}.", "[Er|Sie] lebt mit {n} {obl} zusammen."),
        "friend": (
            "[Sein|Ihr]<|e> <bester Freund|beste Freundin> ist {V}.",
            "[Er|Sie] ist am besten mit {V} befreundet.",
        ),
        "sibling": (
            "[Er|Sie] hat <einen Bruder|eine Schwester> namens {V}.",
            "[Sein|Ihr]<|e> <Bruder|Schwester> heißt {V}.",
        ),
        "parent": (
            "[Sein|Ihr]<|e> <Vater|Mutter> ist {V}.",
            "[Er|Sie] ist [der Sohn|die Tochter] von {V}.",
        ),
    },
    ask={
        "home": ("Wo wohnt {N}?", "In welchem Ort wohnt {N}?", "Wie heißt der Ort, in dem {N} wohnt?"),
        "job": ("Was ist {N} von Beruf?", "Als was arbeitet {N}?", "Welchen Beruf hat {N}?"),
        "food": ("Was ist das Lieblingsessen von {N}?", "Was isst {N} am liebsten?"),
        "colour": ("Was ist die Lieblingsfarbe von {N}?", "Welche Farbe mag {N} am liebsten?"),
        "spot": (
            "Wohin geht {N} oft?",
            "Was ist der Lieblingsort von {N}?",
            "Wohin spaziert {N} gern?",
        ),
        "pet": ("Welches Haustier hat {N}?", "Was für ein Haustier besitzt {N}?"),
        "flock": ("Wie viele {V} hält {N}?", "Wie viele {V} leben auf der Wiese von {N}?"),
        "friend": (
            "Wer ist <der beste Freund|die beste Freundin> von {N}?",
            "Wie heißt {G} <bester Freund|beste Freundin>?",
        ),
        "sibling": (
            "Wer ist <der Bruder|die Schwester> von {N}?",
            "Wie heißt <der Bruder|die Schwester> von {N}?",
        ),
        "parent": ("Wer ist <der Vater|die Mutter> von {N}?", "Wie heißt <der Vater|die Mutter> von {N}?"),
    },
    ask_pronoun={
        "home": ("Und wo wohnt [er|sie]?",),
        "job": ("Und was ist [er|sie] von Beruf?",),
        "food": ("Und was isst [er|sie] am liebsten?",),
        "colour": ("Und was ist [seine|ihre] Lieblingsfarbe?",),
        "spot": ("Und wohin geht [er|sie] oft?",),
        "pet": ("Und welches Haustier hat [er|sie]?",),
        "flock": ("Und wie viele {V} hält [er|sie]?",),
        "friend": ("Und wer ist [sein|ihr]<|e> <bester Freund|beste Freundin>?",),
        "sibling": ("Und wer ist [sein|ihr]<|e> <Bruder|Schwester>?",),
        "parent": ("Und wer ist [sein|ihr]<|e> <Vater|Mutter>?",),
    },
    hop={
        "home": "Wo wohnt {K}?",
        "job": "Als was arbeitet {K}?",
        "colour": "Welche Farbe mag {K} am liebsten?",
    },
    kin={
        "sibling": "<der Bruder|die Schwester> von {N}",
        "parent": "<der Vater|die Mutter> von {N}",
        "friend": "<der beste Freund|die beste Freundin> von {N}",
    },
)
