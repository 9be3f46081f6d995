"""The domains by name, each loaded once."""

from pathlib import Path
from threading import Lock

from benchmarks.catalogues import emoji
from benchmarks.catalogues.domain import Domain
from benchmarks.catalogues.furniture import domain as furniture
from benchmarks.catalogues.icons import domain as icons
from examples.emoji.packages import default_cache


def package_cache() -> Path:
    """Folder of icons and furniture: beside that of the demo."""
    return default_cache().parent / "catalogues"


class Domains:
    """Loads a domain when it is first asked for; safe to share between threads."""

    def __init__(self, *, workers: int) -> None:
        self._workers = workers
        self._loaded: dict[str, Domain] = {}
        self._lock = Lock()

    def __call__(self, domain: str) -> Domain:
        """Return a domain.

        Raises:
            UnavailableError: it cannot be had on this machine; the message says why.
        """
        with self._lock:
            if domain not in self._loaded:
                self._loaded[domain] = self._load(domain)
            return self._loaded[domain]

    def _load(self, domain: str) -> Domain:
        if domain == "emoji":
            return emoji.load_domain(workers=self._workers)
        if domain == "icons":
            return icons.load_domain(package_cache(), workers=self._workers)
        assert domain == "furniture"
        return furniture.load_domain(package_cache(), workers=self._workers)
