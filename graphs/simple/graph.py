"""The default agent: a plain conversation."""

from graphs.base_graph import build_base_graph as build_graph

__all__ = ["build_graph"]
