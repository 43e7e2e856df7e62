"""The native routes: one noun, one file. Each translates and delegates; none decides."""
