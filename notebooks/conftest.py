"""Notebooks as tests: each is one, and its cells run in this process, where the libraries are imported already.

A kernel of its own would import them again for every notebook, which takes longer than most notebooks do. One notebook
has a real kernel, to see that what it shows arrives.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbclient import NotebookClient
from traitlets.config import Config

#: With a view, a figure of plotly, and a model to load.
IN_A_KERNEL = "03_from_neuron_to_head.ipynb"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return Notebook.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None


class Notebook(pytest.File):
    """A file of its own for pytest-xdist, too, which gives whole files to its processes."""

    def collect(self) -> Iterator[pytest.Item]:
        if self.path.name == IN_A_KERNEL:
            yield Kernel.from_parent(self, name="kernel")
        else:
            yield Cells.from_parent(self, name="cells")


class Cells(pytest.Item):
    """All cells of a notebook, one after the other, in the notebook's folder."""

    def runtest(self) -> None:
        notebook = nbformat.read(self.path, as_version=4)
        with chdir(self.path.parent), _torch_as_it_was(), _shell() as shell:
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    with capture_output():  # what a cell returns is drawn, as in a kernel
                        result = shell.run_cell(cell.source)
                    result.raise_error()


class Kernel(pytest.Item):
    """The same in a Jupyter kernel, which sends back what is to be shown."""

    def runtest(self) -> None:
        notebook = nbformat.read(self.path, as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(self.path.parent)}}).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        shown = {kind for output in outputs for kind in output.get("data", {})}
        assert {"text/html", "application/vnd.plotly.v1+json"} <= shown


@contextmanager
def _shell() -> Iterator[InteractiveShell]:
    """What every Jupyter kernel for Python is made of, with variables of its own and without a history on disk."""
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    try:
        yield shell
    finally:
        shell.reset()
        shell.restore_sys_module_state()
        InteractiveShell.clear_instance()
        gc.collect()


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Notebooks may set torch up for themselves; other tests in this process must not see it."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_grad_enabled(grad)
            torch.set_num_threads(threads)
