"""mkdocs hook: adds the generated reference pages while the docs site is built."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks.render import reference


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every generated page; mkdocs calls this once per build."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files
