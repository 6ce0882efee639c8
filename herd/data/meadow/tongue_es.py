"""Spanish: contractions al and del, gender and number agreement, the verb gustar."""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="es",
    animals="m perro perros, m gato gatos, m caballo caballos, f vaca vacas, f oveja ovejas, f cabra cabras, "
    "m pato patos, f gallina gallinas, m conejo conejos, m burro burros, m cerdo cerdos, m camello camellos",
    things="f manzana manzanas, m libro libros, m huevo huevos, f moneda monedas, f flor flores, f pelota pelotas",
    foods="m pan, m arroz, m queso, f sopa, m pastel, m pescado, f miel, f ensalada, "
    "f pizza, m chocolate, m yogur, m maíz",
    spots="m mercado, f escuela, m estanque, m puente, m bosque, m río, m molino, "
    "f biblioteca, m parque, f estación, "
    "f playa, m museo",
    jobs="profesor profesora, médico médica, panadero panadera, granjero granjera, "
    "jardinero jardinera, músico música, "
    "pintor pintora, cocinero cocinera, ingeniero ingeniera, piloto",
    colours="rojo roja, azul, verde, amarillo amarilla, blanco blanca, negro negra, marrón, gris",
    hues="el_rojo, el_azul, el_verde, el_amarillo, el_blanco, el_negro, el_marrón, el_gris",
    sizes="pequeño pequeña, grande",
    tell={
        "home": (
            "{N} vive en {V}.",
            "La casa de {N} está en {V}.",
            "{N} tiene una casa en {V}.",
            "El pueblo donde vive {N} se llama {V}.",
        ),
        "job": (
            "{N} trabaja de {V}.",
            "{N} es {V}.",
            "{N} es {V} de profesión.",
            "La profesión de {N}: {V}.",
        ),
        "food": (
            "La comida favorita de {N} es {V}.",
            "A {N} le gusta mucho {V}.",
            "A {N} le encanta comer {bare}.",
            "La comida que prefiere {N} es {V}.",
        ),
        "colour": (
            "El color favorito de {N} es {V}.",
            "{N} prefiere {V}.",
            "De todos los colores, {N} prefiere {V}.",
        ),
        "spot": (
            "{N} va mucho {to}.",
            "El lugar favorito de {N} es {V}.",
            "A {N} le gusta pasear cerca {of}.",
            "A menudo se ve a {N} cerca {of}.",
        ),
        "pet": (
            "{N} tiene {V} como mascota.",
            "La mascota de {N} es {V}.",
            "{N} posee {V}.",
            "En casa {N} tiene {V}.",
        ),
        "flock": (
            "{N} cría {n} {V}.",
            "{N} cuida de {n} {V}.",
            "Hay {n} {V} en el prado de {N}.",
        ),
        "friend": (
            "<El mejor amigo|La mejor amiga> de {N} es {V}.",
            "{V} es <el mejor amigo|la mejor amiga> de {N}.",
            "{N} tiene <un gran amigo llamado|una gran amiga llamada> {V}.",
        ),
        "sibling": (
            "<El hermano|La hermana> de {N} es {V}.",
            "{N} tiene <un hermano que|una hermana que> se llama {V}.",
            "{V} es <el hermano|la hermana> de {N}.",
        ),
        "parent": (
            "<El padre|La madre> de {N} es {V}.",
            "{V} es <el padre|la madre> de {N}.",
            "{N} es [el hijo|la hija] de {V}.",
        ),
    },
    tell_pronoun={
        "home": ("Vive en {V}.", "Su casa está en {V}."),
        "job": ("Trabaja de {V}.", "Es {V} de profesión."),
        "food": ("Le gusta mucho {V}.", "Su comida favorita es {V}."),
        "colour": ("Su color favorito es {V}.", "De todos los colores prefiere {V}."),
        "spot": ("Va mucho {to}.", "Su lugar favorito es {V}."),
        "pet": ("Tiene {V} como mascota.", "Su mascota es {V}."),
        "flock": ("Cría {n} {V}.", "Cuida de {n} {V}."),
        "friend": ("Su <mejor amigo|mejor amiga> es {V}.",),
        "sibling": ("Su <hermano|hermana> es {V}.", "Tiene <un hermano|una hermana> que se llama {V}."),
        "parent": ("Su <padre|madre> es {V}.", "Es [el hijo|la hija] de {V}."),
    },
    ask={
        "home": ("¿Dónde vive {N}?", "¿En qué pueblo vive {N}?", "¿Cómo se llama el pueblo donde vive {N}?"),
        "job": ("¿Cuál es la profesión de {N}?", "¿De qué trabaja {N}?"),
        "food": ("¿Cuál es la comida favorita de {N}?", "¿Qué comida prefiere {N}?"),
        "colour": ("¿Cuál es el color favorito de {N}?", "¿Qué color prefiere {N}?"),
        "spot": ("¿Adónde va mucho {N}?", "¿Cuál es el lugar favorito de {N}?"),
        "pet": ("¿Qué mascota tiene {N}?", "¿Cuál es la mascota de {N}?"),
        "flock": ("¿<Cuántos|Cuántas> {V} cría {N}?", "¿<Cuántos|Cuántas> {V} hay en el prado de {N}?"),
        "friend": (
            "¿Quién es <el mejor amigo|la mejor amiga> de {N}?",
            "¿Cómo se llama <el mejor amigo|la mejor amiga> de {N}?",
        ),
        "sibling": (
            "¿Quién es <el hermano|la hermana> de {N}?",
            "¿Cómo se llama <el hermano|la hermana> de {N}?",
        ),
        "parent": ("¿Quién es <el padre|la madre> de {N}?", "¿Cómo se llama <el padre|la madre> de {N}?"),
    },
    ask_pronoun={
        "home": ("¿Y dónde vive?",),
        "job": ("¿Y cuál es su profesión?",),
        "food": ("¿Y cuál es su comida favorita?",),
        "colour": ("¿Y cuál es su color favorito?",),
        "spot": ("¿Y adónde va mucho?",),
        "pet": ("¿Y qué mascota tiene?",),
        "flock": ("¿Y <cuántos|cuántas> {V} cría?",),
        "friend": ("¿Y quién es su <mejor amigo|mejor amiga>?",),
        "sibling": ("¿Y quién es su <hermano|hermana>?",),
        "parent": ("¿Y quién es su <padre|madre>?",),
    },
    hop={
        "home": "¿Dónde vive {K}?",
        "job": "¿De qué trabaja {K}?",
        "colour": "¿Qué color prefiere {K}?",
    },
    kin={
        "sibling": "<el hermano|la hermana> de {N}",
        "parent": "<el padre|la madre> de {N}",
        "friend": "<el mejor amigo|la mejor amiga> de {N}",
    },
)
