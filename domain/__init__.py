"""What we talk about: messages, events, agents, callers and failures. stdlib and pydantic, nothing else."""
