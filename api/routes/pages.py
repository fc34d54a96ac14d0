"""Two pages for people: an index, and Swagger UI to try the API.

They load nothing from other hosts: an installation may have no internet access, and users type
their API key into Swagger UI. Links are relative, so that they work behind a proxy with a path
prefix.
"""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse, Response

router: Final = APIRouter(include_in_schema=False)

ASSETS: Final = "/docs/assets"
# The package with Swagger UI holds more files than these pages need.
ASSET_NAMES: Final = ("swagger-ui-bundle.js", "swagger-ui.css")
PATHS: Final = ("/", "/docs", "/docs/start.js", *(f"{ASSETS}/{name}" for name in ASSET_NAMES))

assets: Final = StaticFiles(directory=str(files("fastapi_offline") / "static"))

_HEADERS: Final = {
    # Swagger UI uses `data:` icons and inline styles.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_HOME: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Gullak</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
</style>
<h1>Gullak</h1>
<p>Prepaid credit for metered APIs: usage events in, debits out.</p>
<ul>
<li><a href="docs">docs</a>: every call, with an example to send; and the
webhooks</li>
<li><a href="openapi.json">openapi.json</a>: the same for programs</li>
<li><a href="livez">livez</a>, <a href="readyz">readyz</a>: whether this process runs, and whether
it can serve</li>
<li><a href="metrics">metrics</a>: for Prometheus</li>
</ul>
<h2>First calls</h2>
<p>A key is made by <code>gullak keys create</code>; <code>make up</code> leaves the first one in
<code>.gullak/api_key</code>. README goes on from here.</p>
<pre>
KEY=$(cat .gullak/api_key); API=http://127.0.0.1:8080    # where this page is
alias call="curl -s -H 'Content-Type: application/json' -H 'Authorization: Bearer $KEY'"
call $API/customers -d '{"email": "ann@example.com", "name": "Ann"}'
call $API/customers
</pre>
</html>
"""
_DOCS: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="<!-- base -->docs/assets/swagger-ui.css">
<title>Gullak: the API</title>
<div id="swagger-ui"></div>
<script src="<!-- base -->docs/assets/swagger-ui-bundle.js"></script>
<script src="<!-- base -->docs/start.js"></script>
</html>
"""
_START: Final = """SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""


@router.get("/")
async def home() -> Response:
    """Show the index."""
    return HTMLResponse(_HOME, headers=_HEADERS)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Show Swagger UI."""
    # A browser resolves links of `/docs/` one folder deeper than those of `/docs`.
    base = "../" if request.scope["raw_path"].endswith(b"/") else ""
    return HTMLResponse(_DOCS.replace("<!-- base -->", base), headers=_HEADERS)


@router.get("/docs/start.js")
async def start() -> Response:
    """Return the script of `/docs`. The Content-Security-Policy forbids inline scripts."""
    return Response(_START, media_type="text/javascript", headers=_HEADERS)
