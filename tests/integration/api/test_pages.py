"""The pages for people need no key and no other host, and their links work."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from worker.local.port import HOST


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def anybody(module_api_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=module_api_url) as client:
        yield client


def links(page: httpx.Response) -> list[str]:
    """Return what a page links to and loads, as a browser would resolve it."""
    found = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    return [urljoin(str(page.url), link) for link in found if not link.startswith("data:")]


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/"])
def test_all_links_of_a_page_work_without_a_key(path: str, anybody: httpx.Client) -> None:
    page = anybody.get(path)

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert links(page)
    assert {urlsplit(link).hostname for link in links(page)} == {HOST}
    assert {link: anybody.get(link).status_code for link in links(page)} == dict.fromkeys(
        links(page), 200
    )


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_forbids_requests_to_other_hosts(path: str, anybody: httpx.Client) -> None:
    policy = anybody.get(path).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert set(" ".join(directives.values()).split()) <= {
        "'none'",
        "'self'",
        "'unsafe-inline'",  # of styles only: see above
        "data:",
    }


def test_no_page_has_an_inline_script(anybody: httpx.Client) -> None:
    for path in ("/", "/docs"):
        assert re.findall(r"<script[^>]*>([^<]+)<|\son\w+=", anybody.get(path).text) == []


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_docs_show_the_description_of_this_api(path: str, anybody: httpx.Client) -> None:
    start = next(link for link in links(anybody.get(path)) if link.endswith("start.js"))
    script = anybody.get(start).text
    (named,) = re.findall(r'new URL\("([^"]+)", document.currentScript.src\)', script)

    description = anybody.get(urljoin(start, named))

    assert description.json()["info"]["title"] == "Gullak"


def test_scripts_and_styles_have_their_content_types(anybody: httpx.Client) -> None:
    kinds = {
        link.rpartition("/")[2]: anybody.get(link).headers["content-type"].partition(";")[0]
        for link in links(anybody.get("/docs"))
    }

    assert kinds == {
        "swagger-ui.css": "text/css",
        "swagger-ui-bundle.js": "text/javascript",
        "start.js": "text/javascript",
    }


@pytest.mark.parametrize(
    "path",
    ["/docs/assets/redoc.standalone.js", "/docs/assets/", "/docs/assets/%2e%2e/core.py", "/doc"],
)
def test_other_paths_need_a_key(path: str, anybody: httpx.Client) -> None:
    assert anybody.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/start.js", "/livez", "/readyz", "/metrics"])
def test_head_requests_are_answered(path: str, anybody: httpx.Client) -> None:
    head, whole = anybody.head(path), anybody.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/start.js", "/livez"])
def test_an_unsupported_method_gets_the_supported_one(path: str, anybody: httpx.Client) -> None:
    answer = anybody.post(path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")
