"""The OpenAI dialect under /v1: agents and models for every client that speaks it."""
