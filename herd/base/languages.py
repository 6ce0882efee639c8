"""The eight languages of the Llama 3.1 model card, in the card's order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One supported language: ISO 639-1 code, English name, own name and ISO 15924 script."""

    code: str
    name: str
    endonym: str
    script: str


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "English", "Latn"),
        Language("de", "German", "Deutsch", "Latn"),
        Language("fr", "French", "français", "Latn"),
        Language("it", "Italian", "italiano", "Latn"),
        Language("pt", "Portuguese", "português", "Latn"),
        Language("hi", "Hindi", "हिन्दी", "Deva"),
        Language("es", "Spanish", "español", "Latn"),
        Language("th", "Thai", "ไทย", "Thai"),
    )
}
CODES: tuple[str, ...] = tuple(LANGUAGES)
