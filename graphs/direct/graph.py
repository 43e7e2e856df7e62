"""The model alone: what is asked of it is what the caller wrote."""

from graphs.base_graph import build_base_graph as build_graph

__all__ = ["build_graph"]
