"""The documentation page. Its scripts come from a CDN, so this one page has a Content-Security-Policy of its own."""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response

_CDN = "https://cdn.jsdelivr.net"
_POLICY = (
    f"default-src 'none'; script-src {_CDN} 'unsafe-inline'; style-src {_CDN} 'unsafe-inline'; "
    "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
)


def install_docs(app: FastAPI) -> None:
    """Serve Swagger UI at /docs."""

    async def page(_request: Request) -> Response:
        html = get_swagger_ui_html(openapi_url="/openapi.json", title=f"{app.title} - API")
        html.headers["content-security-policy"] = _POLICY
        return html

    app.add_route("/docs", page, include_in_schema=False)
