"""The OpenAI dialect under /v1: what OpenAI's clients send and expect, translated to our services and back."""
