"""HTTP for long downloads: certificates always verified, busy servers waited for, errors in one line."""

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mcn.errors import MCNError

if TYPE_CHECKING:
    from requests import Response, Session

LONGEST_WAIT = (
    120.0  # seconds; a server that asks for more is answered with an error, not with a night's sleep
)
LONG_WAIT = 4.0  # seconds; longer ones are told of
BY_HAND = "or fetch it in a browser and run `get --from FOLDER` with the folder it is in"


@dataclass(frozen=True)
class Patience:
    """How long a download keeps trying.

    ``tries`` repeats without any progress, the first after ``pause`` seconds, which double with each (at
    most two minutes, also where the server names a time); ``timeout`` seconds of silence mean
    that the connection is cut.

    >>> [Patience(pause=1.0).before(number) for number in (1, 2, 3, 60)]
    [1.0, 2.0, 4.0, 120.0]
    """

    tries: int = 8
    pause: float = 1.0
    timeout: float = 60.0

    def before(self, number: int) -> float:
        """Seconds to wait before repeat ``number`` (from 1)."""
        return min(self.pause * 2.0 ** min(number - 1, 30), LONGEST_WAIT)


class Web:
    """A session with servers; ``requests`` is only needed once a server is asked.

    ``ca_bundle`` is a PEM file with certificates to trust in place of the usual ones.
    """

    def __init__(self, ca_bundle: str | Path = "", patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._verify: bool | str = str(ca_bundle) or True
        if ca_bundle and not Path(ca_bundle).is_file():
            raise MCNError(f"no such file: {ca_bundle} (--ca-bundle takes a PEM file of certificates)")

    def size(self, url: str) -> int | None:
        """Size of the remote file in bytes; None where the server does not say. MCNError where it is gone."""
        with self._ask("HEAD", url, {}) as response:
            if response.status_code in (404, 410):
                raise _refusal(response, url)
            # Other refusals may be of the question, not of the file: some servers do not answer HEAD.
            length = response.headers.get("Content-Length", "") if response.ok else ""
        return int(length) if length.isdecimal() else None

    def open(self, url: str, headers: dict[str, str]) -> "Response":
        """The answer to GET, its body not yet read; its status is 200, 206 or 416."""
        response = self._ask("GET", url, headers)
        if response.status_code not in (200, 206, 416):
            response.close()
            raise _refusal(response, url)
        if "text/html" in response.headers.get("Content-Type", "") and not re.search(r"\.html?$", url):
            response.close()
            raise MCNError(f"{url}: the server sent a web page instead of the file: look at it, {BY_HAND}")
        return response

    def _ask(self, method: str, url: str, headers: dict[str, str]) -> "Response":
        session, waiting = self._session, self.patience.timeout
        from requests import exceptions
        from urllib3.exceptions import HTTPError

        try:
            # `verify` is given with each request: a session's own yields to REQUESTS_CA_BUNDLE.
            return session.request(
                method,
                url,
                headers=headers,
                timeout=waiting,
                verify=self._verify,
                stream=True,
                allow_redirects=True,
            )
        except exceptions.SSLError as error:
            raise MCNError(
                f"{url}: the certificate is not trusted ({_reason(error)}): if the server leaves out "
                f"a part of its chain, give that and its root with --ca-bundle FILE, {BY_HAND}"
            ) from error
        except (exceptions.RequestException, HTTPError, OSError) as error:
            raise MCNError(f"{url}: no answer ({_reason(error)}): check the network, {BY_HAND}") from error

    @cached_property
    def _session(self) -> "Session":
        try:
            import requests
            from requests.adapters import HTTPAdapter
            from urllib3.exceptions import InvalidHeader
            from urllib3.util.retry import Retry
        except ImportError as error:
            raise MCNError('downloads need requests: pip install "mcn[data]"') from error

        class BoundedRetry(Retry):
            def get_retry_after(self, response: Any) -> float | None:
                try:
                    wait = super().get_retry_after(response)
                except InvalidHeader:  # neither seconds nor a date: our own pause, then
                    return None
                return None if wait is None else min(wait, LONGEST_WAIT)

            def sleep(self, response: Any = None) -> None:
                asked = self.get_retry_after(response) if response else None
                wait = asked or self.get_backoff_time()
                if wait >= LONG_WAIT:  # nobody should wonder what a bar that stands still waits for
                    last = self.history[-1]
                    why = f"the server is busy (HTTP {last.status})" if last.status else "no answer"
                    tqdm.write(f"{last.url}: {why}, asked again in {wait:.0f} s", file=sys.stderr)
                super().sleep(response)

        retry = BoundedRetry(
            total=self.patience.tries,
            other=0,  # a certificate does not get better by asking again
            status_forcelist=(429, 500, 502, 503, 504),
            backoff_factor=self.patience.pause,
            raise_on_status=False,
        )
        session = requests.Session()
        session.headers["Accept-Encoding"] = "identity"  # the bytes of the file, as they are counted
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        return session


def _refusal(response: "Response", url: str) -> MCNError:
    meaning = {
        401: "the server wants a login",
        403: "the server does not give it to programs",
        404: "it is not there (any more)",
        410: "it is not there any more",
        429: "the server is busy, try again later",
        503: "the server is busy, try again later",
    }.get(response.status_code, "try again later")
    return MCNError(f"{url}: HTTP {response.status_code} {response.reason}: {meaning}, {BY_HAND}")


def _reason(error: Exception) -> str:
    """The innermost cause, in a few words: messages of nested errors repeat the address several times."""
    inner = getattr(error.args[0], "reason", error) if error.args else error
    text = str(inner or error).splitlines()[0]
    failed = re.search(r"certificate verify failed: ([^()]+?) ?\(", text)
    return failed.group(1) if failed else text.split(": ")[-1]
