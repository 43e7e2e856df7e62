"""Tools for agents: one tool, one file. The registry offers every LangChain tool that a file here defines."""
