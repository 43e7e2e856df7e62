"""Who listens: one vendor per file. Each defines one class, `Transcriber`, as `base.py` asks for it."""
