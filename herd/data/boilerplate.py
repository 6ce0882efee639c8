"""Lines of a web page that are not its text: menus, cookie and newsletter notices, share buttons, footers.

C4 drops such lines by English phrases (arXiv:1910.10683, section 2.2); these are its kinds in eight
languages. A phrase alone is not enough: the line must also be short and look like page furniture.
"""

import re

MAX_LINE = 240  # characters: furniture is short
BUTTON = re.compile(r"\[[^\[\]\n]{2,40}\](?!\()")  # '[Accept all]', but not a Markdown link
COOKIE = re.compile(r"\bcookies?\b|कुकी|คุกกี้", re.I)
COOKIE_NOTICE = re.compile(
    r"\b(we use|uses?|usamos|utilizamos|utilizziamo|nous utilisons|wir verwenden|accept|aceita|acepta|accett|"
    r"policy)|हम आप|เราใช้",
    re.I,
)
NEWSLETTER = re.compile(r"newsletter|\bboletín|\bbulletin|lettre d.information|न्यूज़?लेटर|จดหมายข่าว", re.I)
SUBSCRIBE = re.compile(
    r"\b(subscribe|sign up|abonn|assine|inscreva|iscriviti|suscr[ií]b|inscri)|सदस्यता|सब्सक्राइब|สมัคร|รับจดหมาย",
    re.I,
)
NETWORK = re.compile(
    r"facebook|फेसबुक|เฟซบุ๊ก|whatsapp|व्हाट्सएप|twitter|tweet|tuit|twitta|twittern|ट्वीट|ทวีต|pinterest|pin it|"
    r"linkedin|telegram|ทางไลน์|\bsms\b|reddit|instagram",
    re.I,
)
SHARE = re.compile(
    r"\b(share|partager|partage|teilen|compartir|compartilhar|condividi|print|imprimer|imprimir|stampa|drucken|"
    r"follow us|comments?|kommentare|commentaires?|comentarios?|comentários?|commenti)\b|साझा|प्रिंट|แชร์|พิมพ์",
    re.I,
)
FOOTER = re.compile(r"^\s*(©|\(c\)|copyright\b)", re.I)
RIGHTS = re.compile(
    r"rights reserved|rechte vorbehalten|droits réservés|derechos reservados|direitos reservados|"
    r"diritti riservati|सर्वाधिकार सुरक्षित|สงวนลิขสิทธิ์|privacy|privacidad|datenschutz|confidentialité",
    re.I,
)
PAYWALL = re.compile(
    r"\b(log in|sign in|subscribe)\b.{0,40}\b(keep|continue) reading|limit of free articles|"
    r"(enable|activate) javascript|javascript (is )?(disabled|required)",
    re.I,
)
HTML = re.compile(r"\s*(?:<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>])", re.I)
SENTENCE_END = (".", "!", "?", "।", "…", ":", ";", ",")


def is_furniture(line: str) -> bool:
    """Say whether one line of a document is page furniture rather than text."""
    if not 8 <= len(line) <= MAX_LINE:
        return False
    return (
        _is_menu(line)
        or bool(
            COOKIE.search(line) and (len(BUTTON.findall(line)) >= 2 or COOKIE_NOTICE.search(line)) and len(line) < 200
        )
        or bool(NEWSLETTER.search(line) and SUBSCRIBE.search(line))
        or bool(len(NETWORK.findall(line)) >= 2 and SHARE.search(line) and not line.rstrip().endswith(SENTENCE_END))
        or bool(FOOTER.match(line) and RIGHTS.search(line))
        or bool(PAYWALL.search(line))
    )


def _is_menu(line: str) -> bool:
    cells = line.split(" | ")
    if len(cells) < 4 or line.lstrip().startswith("|") or line.rstrip().endswith((*SENTENCE_END, "|")):
        return False
    return all(0 < len(cell.strip()) <= 30 for cell in cells)


def strip_furniture(text: str) -> tuple[str, int]:
    """Return the text without its furniture lines, and how many were taken out."""
    lines = text.split("\n")
    kept = [line for line in lines if not is_furniture(line)]
    removed = len(lines) - len(kept)
    return (re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n"), removed) if removed else (text, 0)
