"""Building a LAVIDA folder from what is on this machine: public base models, a trained own part, adapters.

Weights that stay as they are become hard links where the file system allows, copies where not. Everything is put together in
a temporary folder beside the destination and renamed into place at the end. Nothing is fetched. The one pickle that is ever
read is Meta's own SAM2.1 checkpoint, by torch's loader that builds tensors only.
"""

from vadcli.importing.build import import_lavida
from vadcli.importing.files import Imported
from vadcli.importing.sources import Sources

__all__ = ["Imported", "Sources", "import_lavida"]
