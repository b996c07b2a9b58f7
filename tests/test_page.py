"""The page: what is gathered for it, that its links are checked, and (where Sphinx is installed) that it is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

import pmd
from pmd.files import ROOT
from pmd.paper import explorer

sys.path.insert(0, str(ROOT / "docs" / "page"))
import links
import stage


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "source"
    stage.gather(ROOT, folder)
    return folder


def test_every_stage_of_the_pipeline_that_runs_a_notebook_is_known():
    stages = stage.executed_as((ROOT / "dvc.yaml").read_text())
    known = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(stages) == known - {"notebooks/8-own-task.ipynb"}  # which is for reading and playing alone
    assert stages["notebooks/0-theory.ipynb"] == "theory"
    assert stages["notebooks/6-benchmark.ipynb"] == "benchmark/*"


def test_an_executed_notebook_is_preferred_of_several_the_newest(tmp_path):
    folder = tmp_path / "runs" / "default" / "notebooks" / "benchmark"
    folder.mkdir(parents=True)
    for name in ("old", "new"):
        (folder / f"{name}.ipynb").write_text(name)
    os.utime(folder / "old.ipynb", (1, 1))
    assert stage.newest(tmp_path, "benchmark/*").read_text() == "new"
    assert stage.newest(tmp_path, "law") is None
    assert stage.newest(tmp_path, None) is None


def test_links_of_the_report_are_those_of_the_root():
    text = '![x](figures/F1.svg) [y](../../README.md) [z](https://a.b/c) <img src="figures/F2.svg"> [w](#part)'
    assert stage.moved(text, "results/default") == (
        "![x](results/default/figures/F1.svg) [y](README.md) [z](https://a.b/c) "
        '<img src="results/default/figures/F2.svg"> [w](#part)'
    )


def test_the_index_is_the_report_with_its_pictures_and_every_text_is_listed(sources):
    index = (sources / "index.md").read_text()
    report = (ROOT / "results" / "default" / "report.md").read_text()
    assert index.startswith(report.split("\n")[0])
    assert "| a1 |" in index
    pictures = re.findall(r"\]\(([^)]+\.svg)\)", index)
    assert len(pictures) == len(re.findall(r"\]\(([^)]+\.svg)\)", report)) > 0
    assert all((sources / path).is_file() for path in pictures)
    texts = {path.relative_to(sources).with_suffix("").as_posix() for path in sources.rglob("*.*")
             if path.suffix in (".md", ".ipynb")}  # fmt: skip
    listed = {line for line in index.split("\n") if line in texts}
    assert listed == texts - {"index"}
    assert len(listed) > 14


def test_the_explorer_is_one_file_and_the_same_on_the_site(sources):
    page = (sources / "files" / "explorer.html").read_text()
    assert re.findall(r'\b(?:src|href)="([^"]+)', page) == ["https://arxiv.org/abs/2602.05933"]
    assert page.count(explorer.part()) == 1
    assert 'name="viewport"' in page
    assert "color-scheme:light dark" in page
    assert (sources / "docs" / "page" / "explorer-part.html").read_text() == explorer.part()


def test_a_link_to_a_missing_file_or_id_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.html").write_text('<p id="here"><a href="../c.html#there">x</a><a href="#here">y</a>')
    (tmp_path / "c.html").write_text('<a href="https://x.y">x</a><img src="a/none.svg"><a href="a/b.html#gone">z</a>')
    assert links.broken(tmp_path) == ["a/b.html: ../c.html#there", "c.html: a/none.svg", "c.html: a/b.html#gone"]


@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is in .venv-page: make test-page")
def test_the_page_is_built_without_a_warning_or_the_network_and_no_link_of_it_is_broken(sources, tmp_path):
    site = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(ROOT / "docs" / "page")]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, str(sources), str(site)], capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    assert links.broken(site) == []
    text = (site / "docs" / "page" / "api.html").read_text()
    defined = [f"{module}.{name}".replace("load_params", "load") for name, module in pmd._MODULES.items()]
    assert [name for name in [*defined, "pmd.theory.weighted.weighted_update"] if f'id="{name}"' not in text] == []
    theory = (site / "notebooks" / "0-theory.html").read_text()
    assert theory.count("<math") > 50
    loaded = [link for link in links.Page(text + theory).links if re.search(r"\.(?:js|css)\b", link)]
    assert len(loaded) > 3
    assert not [link for link in loaded if link.startswith(("http", "//"))]  # the reader needs no other site either
    shutil.rmtree(site)
