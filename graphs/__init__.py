"""What an agent is: a LangGraph graph, its config.yaml and its prompts. No HTTP, no SQL. See README.md."""
