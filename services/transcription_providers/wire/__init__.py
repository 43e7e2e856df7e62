"""The transcription wire that OpenAI made, and what others made of it."""
