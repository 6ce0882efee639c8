"""Personal data: e-mail and IP addresses by datatrove, IBANs, cards and national numbers checked by
python-stdnum, telephone numbers by phonenumbers. Each find becomes a fixed stand-in that can't be anyone's,
and is counted. What no checksum or format betrays (names, postal addresses) is not found.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from datatrove.pipeline.formatters.pii import PIIFormatter, PIIReplacer

from herd.data.extras import available, require

STAND_INS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",  # RFC 5737: documentation only
    "iban": "GB00 XXXX 0000 0000 0000 00",
    "card": "0000 0000 0000 0000",
    "national_id": "000-00-0000",
    "phone": "555-0100",  # the North American plan's fictional range
}
# Six digits close together, or the head of a codice fiscale: only then is a number looked for.
DIGITS = re.compile(r"\d(?:[ \t().\-/]{0,3}\d){5}|[A-Z]{6}\d{2}[A-Z]")
CANDIDATES = re.compile(r"\+\d|\d{3}[ .\-]?\d{3}|\d{2}(?:[ .\-]\d{2}){3}|\(\d{2,5}\)|\b0\d{1,4}[ /.\-]\d{4}")
# What an e-mail address can reach (RFC 5321): the library's own pattern takes quadratic time on hostile text.
AROUND_AT = re.compile(r"[^\s@]{1,64}@[^\s@]{1,255}")
IBAN = r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b"
CARD = r"(?<![\d.,-])[3-6]\d{3}(?:[ -]?\d){8,15}(?![\d-])"
# (pattern, stdnum module that checks it; None where the written form alone is distinctive)
NATIONAL: tuple[tuple[str, str | None], ...] = (
    (r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b", "stdnum.it.codicefiscale"),
    (r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])", None),  # US social security number
    (r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)", "stdnum.br.cpf"),
    (r"\b\d{8}-?[A-HJ-NP-TV-Z]\b", "stdnum.es.dni"),
    (r"\b[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}\b", "stdnum.fr.nir"),
    (r"(?<!\d)\d-?\d{4}-?\d{5}-?\d{2}-?\d(?!\d)", "stdnum.th.pin"),
    (r"(?<!\d)\d{4} \d{4} \d{4}(?!\d)", "stdnum.in_.aadhaar"),
)
REGIONS = {
    "en": ("US", "GB"),
    "de": ("DE",),
    "fr": ("FR",),
    "it": ("IT",),
    "pt": ("PT", "BR"),
    "hi": ("IN",),
    "es": ("ES",),
    "th": ("TH",),
}
# Forms that only a telephone number has, valid or reserved for fiction: (555) 555-0100, 01 99 00 00 00
FORMS = re.compile(r"\(\d{3}\) ?\d{3}-\d{4}\b|(?<![\d.,] )(?<![\d.,])\b0[1-9](?:[ .]\d{2}){4}\b(?![ .,]?\d)")
SEPARATED = re.compile(r"\d[ ().\-/]+\d")
RANGE = re.compile(r"\(?\d{4,6} ?[-/] ?\d{4,6}\)?")  # of years, ports, pages


@dataclass(frozen=True)
class Scrubbed:
    """A text without what was found in it, and how many of each kind there were."""

    text: str
    found: Counter[str]


class PersonalData:
    """Replace personal data by stand-ins. Reusable; the same text always gives the same result."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()
        formatter = PIIFormatter(email_replacement=STAND_INS["email"], ip_replacement=STAND_INS["ip"])
        self._email = formatter.emails_replacer
        self._email.validator = self._counting("email", lambda found: found != STAND_INS["email"])
        self._ip = formatter.ip_replacer
        self._ip.validator = self._counting("ip", _is_someones_ip)
        self._numbers: list[PIIReplacer] = []
        self.detectors = ["email", "ip"]
        if available("stdnum"):
            self._add_checked_numbers()
        self._phones: Any = None
        if available("phonenumbers"):
            self._phones = require("phonenumbers", purpose="finding telephone numbers")
            self.detectors.append("phone")

    def scrub(self, text: str, lang: str | None) -> Scrubbed:
        """Replace what is found; the language says which countries' telephone numbers to expect."""
        self._found = Counter()
        if "@" in text:
            text = AROUND_AT.sub(lambda match: self._email.replace(match[0]), text)
        if DIGITS.search(text):
            if text.count(".") >= 3:
                text = self._ip.replace(text)
            for replacer in self._numbers:
                text = replacer.replace(text)
            if self._phones is not None and CANDIDATES.search(text):
                text = self._replace_phones(text, lang)
        elif text.count(".") >= 3:
            text = self._ip.replace(text)
        return Scrubbed(text, self._found)

    def _counting(self, kind: str, valid: Callable[[str], bool]) -> Callable[[str], bool]:
        def check(found: str) -> bool:
            accepted = valid(found)
            self._found[kind] += accepted
            return accepted

        return check

    def _add_checked_numbers(self) -> None:
        def checked(module: str) -> Callable[[str], bool]:
            return require(module, purpose="checking numbers", install="python-stdnum").is_valid

        luhn = checked("stdnum.luhn")
        card = self._counting("card", lambda found: luhn(re.sub(r"[ -]", "", found)))
        self._numbers.append(PIIReplacer(IBAN, STAND_INS["iban"], self._counting("iban", checked("stdnum.iban"))))
        self._numbers.append(PIIReplacer(CARD, STAND_INS["card"], card))
        for pattern, module in NATIONAL:
            valid = checked(module) if module else lambda found: found != STAND_INS["national_id"]
            self._numbers.append(PIIReplacer(pattern, STAND_INS["national_id"], self._counting("national_id", valid)))
        self.detectors += ["iban", "card", "national_id"]

    def _replace_phones(self, text: str, lang: str | None) -> str:
        spans = [match.span() for match in FORMS.finditer(text)]
        leniency = self._phones.Leniency
        for region in (None, *REGIONS.get(lang or "", ("US",))):
            mode = leniency.POSSIBLE if region is None else leniency.VALID
            for match in self._phones.PhoneNumberMatcher(text, region, leniency=mode):
                # a bare run of digits is as often a date, a count or an identifier
                raw = match.raw_string
                if region is None or (SEPARATED.search(raw) and not RANGE.fullmatch(raw)):
                    spans.append((match.start, match.end))
        return self._cut(text, spans)

    def _cut(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        pieces, end = [], 0
        for start, stop in sorted(set(spans)):
            if start < end or text[start:stop] in STAND_INS.values():
                continue
            pieces += [text[end:start], STAND_INS["phone"]]
            self._found["phone"] += 1
            end = stop
        return "".join([*pieces, text[end:]])


def _is_someones_ip(found: str) -> bool:
    if found == STAND_INS["ip"]:
        return False
    try:
        address = ipaddress.IPv4Address(found)
    except ValueError:
        return False
    # documentation ranges count as someone's: in running text they stand where an address was
    own = (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
    )
    return not any(address in ipaddress.IPv4Network(network) for network in own)
