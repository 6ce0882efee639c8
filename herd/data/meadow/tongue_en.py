"""English: a/an, third-person -s, plural forms."""

from herd.data.meadow.tongue import Tongue

TONGUE = Tongue(
    code="en",
    animals="n dog dogs, n cat cats, n horse horses, n cow cows, n sheep sheep, n goat goats, n duck ducks, "
    "n hen hens, n rabbit rabbits, n donkey donkeys, n pig pigs, n camel camels",
    things="n apple apples, n book books, n egg eggs, n coin coins, n flower flowers, n ball balls",
    foods="n bread, n rice, n cheese, n soup, n cake, n fish, n honey, n salad, n pizza, n chocolate, n yogurt, n corn",
    spots="n market, n school, n pond, n bridge, n forest, n river, n mill, n library, "
    "n park, n station, n beach, "
    "n museum",
    jobs="teacher, doctor, baker, farmer, gardener, musician, painter, cook, engineer, pilot",
    colours="red, blue, green, yellow, white, black, brown, grey",
    hues="red, blue, green, yellow, white, black, brown, grey",
    sizes="small, big",
    tell={
        "home": (
            "{N} lives in {V}.",
            "The home of {N} is in {V}.",
            "{N} has a house in {V}.",
            "The town where {N} lives is called {V}.",
        ),
        "job": ("{N} works as {V}.", "{N} is {V}.", "The job of {N} is {bare}.", "By trade, {N} is {V}."),
        "food": (
            "The favourite food of {N} is {V}.",
            "{N} likes {V} best.",
            "{N} loves to eat {V}.",
            "{G} favourite food is {V}.",
        ),
        "colour": (
            "The favourite colour of {N} is {V}.",
            "{G} favourite colour is {V}.",
            "Of all colours, {N} likes {V} best.",
        ),
        "spot": (
            "{N} often goes to {V}.",
            "The favourite spot of {N} is {V}.",
            "{N} likes to walk to {V}.",
            "People often meet {N} near {V}.",
        ),
        "pet": ("{N} has {V} as a pet.", "The pet of {N} is {V}.", "{N} owns {V}.", "At home {N} has {V}."),
        "flock": (
            "{N} keeps {n} {V}.",
            "{N} takes care of {n} {V}.",
            "There are {n} {V} on the meadow of {N}.",
        ),
        "friend": (
            "The best friend of {N} is {V}.",
            "{G} best friend is {V}.",
            "{N} is best friends with {V}.",
        ),
        "sibling": (
            "The <brother|sister> of {N} is {V}.",
            "{N} has a <brother|sister> called {V}.",
            "{G} <brother|sister> is {V}.",
        ),
        "parent": (
            "The <father|mother> of {N} is {V}.",
            "{V} is the <father|mother> of {N}.",
            "{N} is the [son|daughter] of {V}.",
        ),
    },
    tell_pronoun={
        "home": ("[He|She] lives in {V}.", "[His|Her] home is in {V}."),
        "job": ("[He|She] works as {V}.", "[He|She] is {V}."),
        "food": ("[He|She] likes {V} best.", "[His|Her] favourite food is {V}."),
        "colour": ("[His|Her] favourite colour is {V}.", "Of all colours, [he|she] likes {V} best."),
        "spot": ("[He|She] often goes to {V}.", "[He|She] likes to walk to {V}."),
        "pet": ("[He|She] has {V} as a pet.", "[His|Her] pet is {V}."),
        "flock": ("[He|She] keeps {n} {V}.", "There are {n} {V} on [his|her] meadow."),
        "friend": ("[His|Her] best friend is {V}.", "[He|She] is best friends with {V}."),
        "sibling": ("[His|Her] <brother|sister> is {V}.", "[He|She] has a <brother|sister> called {V}."),
        "parent": ("[His|Her] <father|mother> is {V}.", "[He|She] is the [son|daughter] of {V}."),
    },
    ask={
        "home": ("Where does {N} live?", "In which town does {N} live?", "What is the home town of {N}?"),
        "job": ("What is the job of {N}?", "What does {N} work as?", "What does {N} do for a living?"),
        "food": (
            "What is the favourite food of {N}?",
            "Which food does {N} like best?",
            "What does {N} love to eat?",
        ),
        "colour": ("What is the favourite colour of {N}?", "Which colour does {N} like best?"),
        "spot": (
            "Where does {N} often go?",
            "What is the favourite spot of {N}?",
            "Where does {N} like to walk?",
        ),
        "pet": ("Which pet does {N} have?", "What kind of pet does {N} own?"),
        "flock": ("How many {V} does {N} keep?", "How many {V} are on the meadow of {N}?"),
        "friend": ("Who is the best friend of {N}?", "Who is {G} best friend?"),
        "sibling": ("Who is the <brother|sister> of {N}?", "What is the name of {G} <brother|sister>?"),
        "parent": ("Who is the <father|mother> of {N}?", "What is the name of {G} <father|mother>?"),
    },
    ask_pronoun={
        "home": ("And where does [he|she] live?",),
        "job": ("And what is [his|her] job?",),
        "food": ("And what is [his|her] favourite food?",),
        "colour": ("And what is [his|her] favourite colour?",),
        "spot": ("And where does [he|she] often go?",),
        "pet": ("And which pet does [he|she] have?",),
        "flock": ("And how many {V} does [he|she] keep?",),
        "friend": ("And who is [his|her] best friend?",),
        "sibling": ("And who is [his|her] <brother|sister>?",),
        "parent": ("And who is [his|her] <father|mother>?",),
    },
    hop={
        "home": "Where does {K} live?",
        "job": "What does {K} work as?",
        "colour": "Which colour does {K} like best?",
    },
    kin={
        "sibling": "the <brother|sister> of {N}",
        "parent": "the <father|mother> of {N}",
        "friend": "the best friend of {N}",
    },
)
