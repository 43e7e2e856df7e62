"""How readers learn that a run has told something: one engine a file. The events themselves are in the record."""
