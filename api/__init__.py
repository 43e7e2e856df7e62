"""How the world speaks to us. FastAPI lives here and nowhere below."""
