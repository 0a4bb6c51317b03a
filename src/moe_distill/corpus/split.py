"""Which split a document belongs to: its own hash decides, so neither order nor other documents can move it."""

import hashlib

DRAWS = 2**64  # values of 64 bits


def document_id(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether the document is held out: true for `fraction` of all hashes, by their top 64 bits."""
    return int(document_id[:16], 16) < fraction * DRAWS


def is_kept(document_id: str, weight: float) -> bool:
    """Whether a training document is among the share `weight` of its source, by the next 64 bits of its hash.

    Other bits than the split's, else a low weight would keep nothing but validation documents. Raising the
    weight only adds documents.
    """
    return int(document_id[16:32], 16) < weight * DRAWS
