"""Pure renderers (envelope in, bytes out) and the response that carries them."""
