"""What a release says about itself in several files."""

import configparser
import re
from pathlib import Path

import jinja2
import pytest
import yaml

import mixer_bijectors as mb

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipe/meta.yaml"


def requirements(section, key):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return {line for line in setup[section][key].splitlines() if line and line[0] != "#"}


@pytest.fixture(scope="module")
def recipe():
    text = jinja2.Template(RECIPE.read_text()).render(
        PYTHON="python", python_min=setup_python().split("=")[1]
    )
    return yaml.safe_load(text)


def setup_python():
    return next(iter(requirements("options", "python_requires")))


def test_the_recipe_has_the_sections_in_the_order_of_conda_forge(recipe):
    assert [*recipe] == ["package", "source", "build", "requirements", "test", "about"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()
    assert recipe["build"]["noarch"] == "python"


def test_the_recipe_needs_what_the_package_needs(recipe):
    run = {line.replace(" ", "") for line in recipe["requirements"]["run"]}
    run = {re.sub("^pytorch", "torch", line) for line in run}
    wanted = requirements("options", "install_requires") | {"python" + setup_python()}
    assert run == wanted
    scripts = requirements("options.entry_points", "console_scripts")
    assert {*recipe["build"]["entry_points"]} == scripts


def test_versions_agree(recipe):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == recipe["package"]["version"] == mb.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"(?m)^## \[?([\d.]+|Unreleased)\]?", changelog)
    assert mb.__version__ in newest[:2]


@pytest.mark.parametrize(
    "path", [".readthedocs.yaml", ".pre-commit-config.yaml", ".github/ISSUE_TEMPLATE/bug.yml"]
)
def test_settings_of_hosts_can_be_read(path):
    if not (ROOT / path).exists():
        pytest.skip("a source distribution leaves it out")
    assert yaml.safe_load((ROOT / path).read_text())


def test_extras_of_hosts_exist():
    path = ROOT / ".readthedocs.yaml"
    if not path.exists():
        pytest.skip("a source distribution leaves it out")
    (install,) = yaml.safe_load(path.read_text())["python"]["install"]
    for extra in install["extra_requirements"]:
        assert requirements("options.extras_require", extra)
