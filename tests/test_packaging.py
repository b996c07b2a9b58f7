"""What a new user installs: versions agree, notebooks are clean, no file holds a path of one machine."""

import configparser
import io
import re
import subprocess
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from pmd.extras import TESTED
from pmd.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/*.ipynb"))
CUDA = ("nvidia", "cuda", "triton")
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")


def yaml(name: str) -> dict:
    return YAML(typ="safe").load((ROOT / name).read_text())


def pins(requirements: list[str]) -> dict[str, str]:
    """{name: version}; every requirement must be one exact public version, without marker, extra or hash."""
    found = {}
    for line in requirements:
        match = PIN.fullmatch(line)
        assert match, f"{line!r} is not a plain NAME==VERSION"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = match[2]
    return found


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return pins([line for line in lines if not line.startswith("#")])


def files() -> list[Path]:
    """Every file that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_lock_holds_every_direct_requirement_at_the_version_of_pyproject():
    direct = pins(EXTRAS["artifact"] + EXTRAS["test"])
    lock = locked()
    assert {name: lock.get(name) for name in direct} == direct


def test_the_package_needs_torch_and_numpy_alone_at_versions_that_the_lock_has():
    needed = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}
    assert set(needed) == {"numpy", "torch"}
    assert [name for name, versions in needed.items() if not versions.contains(locked()[name])] == []


def test_the_stacks_that_users_install_are_those_that_are_tested_and_accepted():
    assert set(EXTRAS) == {"artifact", "test", "vllm", *TESTED}
    assert [EXTRAS[name] for name in TESTED] == [[f"{name}=={minor}.*"] for name, minor in TESTED.items()]
    installed = (ROOT / "Makefile").read_text() + (ROOT / "tests" / "stacks" / "requirements-trl.txt").read_text()
    assert {name: re.findall(rf"\b{name}==(\d+\.\d+)\.\d+", installed) for name in TESTED} == {
        name: [minor] for name, minor in TESTED.items()
    }


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [(version, date) for version, date in headings if version != "Unreleased"]
    assert released[0][0] == PROJECT["version"]
    assert all(date for _, date in released)


def test_lock_is_closed_under_dependencies():
    """Each locked package, as installed here, needs only what is locked, at a version that the lock has."""
    lock = locked()
    for distribution in metadata.distributions():
        if canonicalize_name(distribution.metadata["Name"]) not in lock:
            continue
        for requirement in map(Requirement, distribution.requires or []):
            name = canonicalize_name(requirement.name)
            here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if here and not name.startswith(CUDA):
                assert name in lock, f"{distribution.metadata['Name']} needs {requirement}, the lock lacks it"
                assert requirement.specifier.contains(lock[name], prereleases=True), f"not as locked: {requirement}"


def test_the_wheel_ships_every_room_and_its_type_hints():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools["packages"]["find"]["include"] == ["pmd*"]
    assert tools["package-data"]["pmd"] == ["py.typed"]
    assert (ROOT / "pmd" / "py.typed").is_file()
    rooms = {path.parent for path in (ROOT / "pmd").rglob("*.py")}
    assert not [room for room in rooms if not (room / "__init__.py").is_file()]


def test_lock_serves_cpu_and_cuda_alike():
    lock = locked()
    assert lock["torch"] == "2.13.0"
    assert [name for name in lock if name.startswith((*CUDA, "vllm", "pmd"))] == []
    assert EXTRAS["vllm"] == ["vllm==0.32.0"]


def test_conda_environment_installs_the_lock_on_a_supported_python():
    environment = yaml("environment.yml")
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11.0")
    assert environment["name"] == PROJECT["name"]


def test_citation_has_what_the_format_requires_and_what_an_archive_reads():
    """Of version 1.2.0: four keys are required, of a reference three, and a text may not be blank."""
    citation = yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    for key in ("title", "message", "abstract"):
        assert len(citation[key].strip()) > 20, key
    assert all(isinstance(word, str) for word in citation["keywords"])
    assert len(set(citation["keywords"])) == len(citation["keywords"]) >= 3
    assert all(
        {"name"} == set(author) or {"family-names", "given-names"} <= set(author) for author in citation["authors"]
    )
    [paper] = citation["references"]
    assert {"authors", "title", "type"} <= set(paper)
    named = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert named == ["Zhenghao Xu", "Qin Lu", "Changlong Yu", "Tuo Zhao"]
    assert (paper["type"], paper["year"], paper["url"]) == (
        "article",
        2026,
        "https://arxiv.org/abs/2602.05933",
    )


def test_license_is_the_one_pyproject_names():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_takes_parameters(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.cell_type for cell in tagged] == ["code"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"outputs are stored: {cell.source[:60]!r}"
            assert len(cell.source.splitlines()) <= 40, f"a cell is long: {cell.source[:60]!r}"


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ is empty"


def test_no_file_holds_a_path_of_one_machine():
    home = re.compile(rb"(?<![\w.])/(?:home|Users)/\w|(?<![\w.])/root[/]|[A-Z]:\\Users")
    found = [str(path.relative_to(ROOT)) for path in files() if home.search(path.read_bytes())]
    assert found == []


def test_no_file_is_large_and_the_base_models_are_small():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in files() if path.stat().st_size > 1_000_000}
    assert large.pop("results/default/report.html", 0) < 2_500_000  # one file with its pictures in it
    bases = {name: size for name, size in large.items() if re.fullmatch(r"bases/base-\d+/model\.safetensors", name)}
    assert large == bases, "above 1 MB"
    assert max(bases.values()) < 1_250_000
    assert sum(bases.values()) < 10_000_000


def test_line_ends_stay_as_they_are_pinned_whatever_git_is_told(tmp_path):
    """With core.autocrlf, as on many machines: a clone's files have the bytes of the checkout that it was made from."""
    names = ["scripts/train.slurm", "notebooks/0-theory.ipynb", "dvc.lock", "results/reference/reported_30b_curves.csv"]
    (tmp_path / "from").mkdir()
    for name in [".gitattributes", *names]:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path / "from", check=True)
    subprocess.run([*git, "clone", "-q", "from", "to"], cwd=tmp_path, check=True)
    for name in names:
        assert (tmp_path / "to" / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_a_zip_tells_dvc_that_there_is_no_git_and_a_clone_does_not(tmp_path):
    (tmp_path / ".dvc").mkdir()
    for name in (".gitattributes", ".dvc/config"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=tmp_path, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        unpacked = configparser.ConfigParser()
        unpacked.read_string(opened.extractfile(".dvc/config").read().decode())
    cloned = configparser.ConfigParser()
    cloned.read_string((ROOT / ".dvc" / "config").read_text())
    common = {"analytics": "false", "check_update": "false"}
    assert dict(cloned["core"]) in (common, common | {"no_scm": "true"})  # the latter if this is a ZIP itself
    assert dict(unpacked["core"]) == common | {"no_scm": "true"}
