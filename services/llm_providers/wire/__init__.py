"""What the vendors share: how an answer is put together, and how a chat model speaks to its run."""
