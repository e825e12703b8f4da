"""What people look at in the morning: a page of an archive's events and failures, and a digest for a mail.

`archive` reads what the scans left, `curves` and `pictures` make it small enough to show, `html` is the page,
`digest` the words.
"""

from __future__ import annotations
