"""Personal information that patterns can find: mail addresses and public IP addresses.

As in FineWeb (Penedo et al. 2024, §3.7): replaced, so that the sentence around it stays whole.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

from llamaseek.data.documents import Document
from llamaseek.data.stage import Stage

LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
MAIL = re.compile(
    rf"\b{LOCAL}(?:\.{LOCAL})*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9]+"
)
OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
ADDRESS = re.compile(rf"(?<![\d.])(?:{OCTET}\.){{3}}{OCTET}(?!\.?\d)")


class Personal(Stage):
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
