"""One vendor, one file. `LLMService` imports a file when its provider is first used."""
