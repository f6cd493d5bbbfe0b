from pathlib import Path

import pytest

from posttrain.core.config import Strict, load_yaml, read_yaml
from posttrain.core.errors import ConfigError
from posttrain.pipeline.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


class Inner(Strict):
    rate: float = 0.1


class Outer(Strict):
    name: str
    inner: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nnmae: b", r"unknown key 'nmae'; did you mean 'name'\?"),
        ("name: a\ninner: [{rat: 1}]", r"unknown key 'inner\[0\].rat'; did you mean 'rate'\?"),
        ("name: a\nmaybe: {rat: 1}", r"unknown key 'maybe.rat'; did you mean 'rate'\?"),
        ("inner: []", "'name' is missing"),
        ("name: a\ninner: [{rate: fast}]", r"'inner\[0\].rate': .*'fast'"),
        ("- a", "expected keys and values"),
        ("a: [", "not valid YAML"),
    ],
)
def test_complaints_name_file_path_and_nearest_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_yaml(Outer, path)
    assert str(caught.value).startswith(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_and_size_loads(path: Path) -> None:
    from posttrain.pipeline.stages import Workshop

    for size in (None, *read_yaml(path).get("sizes", {})):
        recipe = load_recipe(path, size=size)
        shop = Workshop(recipe, Path("unused"))
        for stage in recipe.stages:
            assert shop.versions(stage) or (stage.data is not None and stage.data.maker is None)


def recipe_text(tmp_path: Path, change: tuple[str, str] = ("", "")) -> Path:
    text = (RECIPES / "quickstart.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "r.yaml"
    path.write_text(text.replace(*change) if change[0] else text)
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("data: worked}", "data: wroked}"), "stage 'sft' needs 'wroked', which is no earlier stage; did you mean 'worked'"),
        (("model: sft, eval", "model: worked, eval"), "model 'worked' is not a training stage"),
        (("name: few-shot,", "name: zero-shot,"), "two stages are called 'zero-shot'"),
    ],
)
def test_recipe_references_are_checked(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(recipe_text(tmp_path, change))


def test_overrides_address_stages_by_name(tmp_path: Path) -> None:
    path = recipe_text(tmp_path)
    recipe = load_recipe(path, overrides={"stages.zero-shot.eval.limit": 5, "seed": 3})
    assert (recipe.stages[0].eval.limit, recipe.seed) == (5, 3)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no stage 'zero-shto'; did you mean 'zero-shot'"):
        load_recipe(path, overrides={"stages.zero-shto.eval.limit": 5})
    with pytest.raises(ConfigError, match="no size 'smal'"):
        load_recipe(path, size="smal")
