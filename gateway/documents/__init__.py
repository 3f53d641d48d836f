"""`routes.yaml` as plain data in which every value knows where it is written, and complaints that show the place."""

from gateway.documents.complaints import (
    Complaint,
    Complaints,
    Loc,
    Place,
    did_you_mean,
    render,
    shown_value,
    subject_of,
)
from gateway.documents.document import Data, Document, masked
from gateway.documents.reading import parse, read
from gateway.documents.wording import complaints_of

__all__ = [
    "Complaint",
    "Complaints",
    "Data",
    "Document",
    "Loc",
    "Place",
    "complaints_of",
    "did_you_mean",
    "masked",
    "parse",
    "read",
    "render",
    "shown_value",
    "subject_of",
]
