"""What the product does: one class, one use case. `container.open_services` builds them all, once."""
