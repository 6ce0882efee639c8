"""The rules that join words: articles, contractions, elision, agreement of adjectives, case endings.

Every rule takes a language and words of that language, and returns the phrase as it is written.
"""

from herd.data.meadow.tongue import Noun

_VOWELS = "aeiouyàâäáãéèêëíìîïóòôöúùûüœæ"
_GERMAN_ARTICLE = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "acc": {"m": "den", "f": "die", "n": "das"},
    "dat": {"m": "dem", "f": "der", "n": "dem"},
}
# Contraction of a preposition with the masculine and feminine article; elided forms are made by rule.
_CONTRACTIONS = {
    ("fr", "to"): ("au ", "à la ", "à l'"),
    ("fr", "of"): ("du ", "de la ", "de l'"),
    ("it", "to"): ("al ", "alla ", "all'"),
    ("it", "of"): ("del ", "della ", "dell'"),
    ("pt", "to"): ("ao ", "à ", ""),
    ("pt", "of"): ("do ", "da ", ""),
    ("pt", "in"): ("no ", "na ", ""),
    ("es", "to"): ("al ", "a la ", ""),
    ("es", "of"): ("del ", "de la ", ""),
    ("de", "to"): ("zum ", "zur ", ""),
    ("de", "near"): ("beim ", "bei der ", ""),
}
_ARTICLES = {
    "fr": ("le ", "la ", "l'"),
    "it": ("il ", "la ", "l'"),
    "pt": ("o ", "a ", ""),
    "es": ("el ", "la ", ""),
}


def starts_with_vowel(word: str) -> bool:
    """Does a Latin-script word begin with a vowel, so that French and Italian elide before it?"""
    return word[0].lower() in _VOWELS[:5] + _VOWELS[6:]


def takes_lo(word: str) -> bool:
    """Does an Italian masculine noun take lo and uno: z, y, ps, gn, or s before a consonant?"""
    word = word.lower()
    return word[0] in "zyx" or word[:2] in ("ps", "pn", "gn") or (word[0] == "s" and word[1] not in "aeiou")


def definite(lang: str, noun: Noun) -> str:
    """Return the noun with its definite article, in the nominative; bare in Hindi and Thai."""
    if lang == "en":
        return f"the {noun.one}"
    if lang == "de":
        return f"{_GERMAN_ARTICLE['nom'][noun.gender]} {noun.one}"
    if lang in _ARTICLES:
        return _fuse(lang, noun, _ARTICLES[lang], "lo ")
    return noun.one


def contracted(lang: str, preposition: str, noun: Noun) -> str:
    """Return preposition + article + noun, as in zum Markt, au marché, allo stagno, do lago."""
    forms = _CONTRACTIONS.get((lang, preposition))
    if forms is None:
        return definite(lang, noun)
    return _fuse(lang, noun, forms, {"to": "allo ", "of": "dello "}.get(preposition, ""))


def _fuse(lang: str, noun: Noun, forms: tuple[str, str, str], lo: str) -> str:
    if forms[2] and starts_with_vowel(noun.one):
        return forms[2] + noun.one
    if lang == "it" and noun.gender == "m" and takes_lo(noun.one):
        return lo + noun.one
    return forms[noun.gender == "f"] + noun.one


def elided(preposition: str, word: str) -> str:
    """Join French de or que with a word: d'Emma, de Lisa, qu'Anton."""
    return f"{preposition[:-1]}'{word}" if starts_with_vowel(word) else f"{preposition} {word}"


def indefinite(lang: str, word: str) -> str:
    """Return an English word with a or an; other languages name a trade without an article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}" if lang == "en" else word


def agree(lang: str, forms: tuple[str, str], gender: str, case: str = "acc") -> str:
    """Inflect an adjective after an indefinite article; `forms`: masculine and feminine, or a German stem."""
    if lang != "de":
        return forms[gender == "f"]
    ending = {"f": "e", "n": "es"}.get(gender, "en" if case == "acc" else "er")
    return forms[0] + ending


def pet_phrase(lang: str, animal: Noun, *, colour: tuple[str, str], size: tuple[str, str], case: str = "acc") -> str:
    """Return 'a small brown dog' with every agreement the language asks for."""
    shade, scale = (agree(lang, forms, animal.gender, case) for forms in (colour, size))
    female = animal.gender == "f"
    match lang:
        case "en":
            return f"a {scale} {shade} {animal.one}"
        case "de":
            article = {"f": "eine", "n": "ein"}.get(animal.gender, "einen" if case == "acc" else "ein")
            return f"{article} {scale} {shade} {animal.one}"
        case "fr":
            return f"{'une' if female else 'un'} {scale} {animal.one} {shade}"
        case "it":
            return f"{'una' if female else 'un'} {scale} {animal.one} {shade}"
        case "pt":
            return f"{'uma' if female else 'um'} {animal.one} {scale} e {shade}"
        case "es":
            return f"{'una' if female else 'un'} {animal.one} {scale} y {shade}"
        case "hi":
            return f"एक {scale} {shade} {animal.one}"
        case _:
            return f"{animal.one}{shade}{animal.many}{scale}"
