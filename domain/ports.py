"""Small Protocols between the floors: services speak to these, `core` and tests implement them."""

from typing import Protocol

from domain.auth import Principal


class Authenticator(Protocol):
    """Turns a credential into the one who holds it."""

    async def authenticate(self, credential: str) -> Principal:
        """The caller behind an access token (JWT) or an API key (`rk_...`).

        Raises:
            Unauthenticated: the credential is not good, or not any more.
        """
        ...
