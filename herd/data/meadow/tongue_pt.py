"""Portuguese (as in Brazil): contractions do, na, ao and à, gender in articles and adjectives."""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="pt",
    animals="m cachorro cachorros, m gato gatos, m cavalo cavalos, f vaca vacas, "
    "f ovelha ovelhas, f cabra cabras, "
    "m pato patos, f galinha galinhas, m coelho coelhos, m burro burros, m porco porcos, m camelo camelos",
    things="f maçã maçãs, m livro livros, m ovo ovos, f moeda moedas, f flor flores, f bola bolas",
    foods="m pão, m arroz, m queijo, f sopa, m bolo, m peixe, m mel, f salada, "
    "f pizza, m chocolate, m iogurte, m milho",
    spots="m mercado, f escola, m lago, f ponte, f floresta, m rio, m moinho, f biblioteca, "
    "m parque, f estação, f praia, "
    "m museu",
    jobs="professor professora, médico médica, padeiro padeira, agricultor agricultora, "
    "jardineiro jardineira, "
    "musicista, pintor pintora, cozinheiro cozinheira, engenheiro engenheira, piloto",
    colours="vermelho vermelha, azul, verde, amarelo amarela, branco branca, preto preta, marrom, cinza",
    hues="o_vermelho, o_azul, o_verde, o_amarelo, o_branco, o_preto, o_marrom, o_cinza",
    sizes="pequeno pequena, grande",
    tell={
        "home": (
            "{N} mora em {V}.",
            "A casa de {N} fica em {V}.",
            "{N} tem uma casa em {V}.",
            "A cidade onde {N} mora se chama {V}.",
        ),
        "job": (
            "{N} trabalha como {V}.",
            "{N} é {V}.",
            "{N} é {V} de profissão.",
            "A profissão de {N}: {V}.",
        ),
        "food": (
            "A comida favorita de {N} é {V}.",
            "{N} gosta muito de {bare}.",
            "{N} adora comer {bare}.",
            "A comida que {N} prefere é {V}.",
        ),
        "colour": (
            "A cor favorita de {N} é {V}.",
            "{N} prefere {V}.",
            "De todas as cores, {N} prefere {V}.",
        ),
        "spot": (
            "{N} vai muito {to}.",
            "O lugar favorito de {N} é {V}.",
            "{N} gosta de passear perto {of}.",
            "Muitas vezes se vê {N} {in}.",
        ),
        "pet": (
            "{N} tem {V} de estimação.",
            "O animal de {N} é {V}.",
            "{N} possui {V}.",
            "Em casa {N} tem {V}.",
        ),
        "flock": (
            "{N} cria {n} {V}.",
            "{N} cuida de {n} {V}.",
            "Há {n} {V} no pasto de {N}.",
        ),
        "friend": (
            "<O melhor amigo|A melhor amiga> de {N} é {V}.",
            "{V} é <o melhor amigo|a melhor amiga> de {N}.",
            "{N} tem <um grande amigo chamado|uma grande amiga chamada> {V}.",
        ),
        "sibling": (
            "<O irmão|A irmã> de {N} é {V}.",
            "{N} tem <um irmão chamado|uma irmã chamada> {V}.",
            "{V} é <o irmão|a irmã> de {N}.",
        ),
        "parent": (
            "<O pai|A mãe> de {N} é {V}.",
            "{V} é <o pai|a mãe> de {N}.",
            "{N} é [o filho|a filha] de {V}.",
        ),
    },
    tell_pronoun={
        "home": ("[Ele|Ela] mora em {V}.", "A casa [dele|dela] fica em {V}."),
        "job": ("[Ele|Ela] trabalha como {V}.", "[Ele|Ela] é {V}."),
        "food": ("[Ele|Ela] gosta muito de {bare}.", "A comida favorita [dele|dela] é {V}."),
        "colour": ("A cor favorita [dele|dela] é {V}.", "De todas as cores, [ele|ela] prefere {V}."),
        "spot": ("[Ele|Ela] vai muito {to}.", "O lugar favorito [dele|dela] é {V}."),
        "pet": ("[Ele|Ela] tem {V} de estimação.", "O animal [dele|dela] é {V}."),
        "flock": ("[Ele|Ela] cria {n} {V}.", "[Ele|Ela] cuida de {n} {V}."),
        "friend": ("<O melhor amigo|A melhor amiga> [dele|dela] é {V}.",),
        "sibling": (
            "<O irmão|A irmã> [dele|dela] é {V}.",
            "[Ele|Ela] tem <um irmão chamado|uma irmã chamada> {V}.",
        ),
        "parent": ("<O pai|A mãe> [dele|dela] é {V}.", "[Ele|Ela] é [filho|filha] de {V}."),
    },
    ask={
        "home": ("Onde {N} mora?", "Em que cidade {N} mora?", "Como se chama a cidade onde {N} mora?"),
        "job": ("Qual é a profissão de {N}?", "Em que {N} trabalha?"),
        "food": ("Qual é a comida favorita de {N}?", "Que comida {N} prefere?"),
        "colour": ("Qual é a cor favorita de {N}?", "Que cor {N} prefere?"),
        "spot": ("Aonde {N} vai muito?", "Qual é o lugar favorito de {N}?"),
        "pet": ("Que animal de estimação {N} tem?", "Qual é o animal de {N}?"),
        "flock": ("<Quantos|Quantas> {V} {N} cria?", "<Quantos|Quantas> {V} há no pasto de {N}?"),
        "friend": (
            "Quem é <o melhor amigo|a melhor amiga> de {N}?",
            "Como se chama <o melhor amigo|a melhor amiga> de {N}?",
        ),
        "sibling": ("Quem é <o irmão|a irmã> de {N}?", "Como se chama <o irmão|a irmã> de {N}?"),
        "parent": ("Quem é <o pai|a mãe> de {N}?", "Como se chama <o pai|a mãe> de {N}?"),
    },
    ask_pronoun={
        "home": ("E onde [ele|ela] mora?",),
        "job": ("E qual é a profissão [dele|dela]?",),
        "food": ("E qual é a comida favorita [dele|dela]?",),
        "colour": ("E qual é a cor favorita [dele|dela]?",),
        "spot": ("E aonde [ele|ela] vai muito?",),
        "pet": ("E que animal de estimação [ele|ela] tem?",),
        "flock": ("E <quantos|quantas> {V} [ele|ela] cria?",),
        "friend": ("E quem é <o melhor amigo|a melhor amiga> [dele|dela]?",),
        "sibling": ("E quem é <o irmão|a irmã> [dele|dela]?",),
        "parent": ("E quem é <o pai|a mãe> [dele|dela]?",),
    },
    hop={
        "home": "Onde mora {K}?",
        "job": "Em que trabalha {K}?",
        "colour": "Que cor prefere {K}?",
    },
    kin={
        "sibling": "<o irmão|a irmã> de {N}",
        "parent": "<o pai|a mãe> de {N}",
        "friend": "<o melhor amigo|a melhor amiga> de {N}",
    },
)
