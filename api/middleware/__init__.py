"""Pure ASGI middleware: no `BaseHTTPMiddleware`, which hides disconnects and buffers streams."""
