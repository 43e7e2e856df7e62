"""Sound: taken in, decoded, cut at pauses and encoded again. Its packages are an extra, imported when needed."""
