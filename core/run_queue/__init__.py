"""How workers learn that there is something to run: one engine a file. Who may run what is in the record."""
