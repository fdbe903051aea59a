"""What a study file may say, and what is refused with a sentence."""

import pytest
import yaml

from cir_lightning.study import plan
from data_modules.errors import UserError

BASE = {"trainer": {"max_steps": 3, "default_root_dir": "runs/base"}, "model": {"lr": 0.1, "loss": {"memory": 0}}}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        content = {"configs": [str(tmp_path / "base.yaml")], "seeds": [0, 1], "arms": {"one": [], "two": [{"model": {"lr": 0.2}}]}}
        path = tmp_path / "quick.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (content | changes).items() if value is not None}, sort_keys=False))
        return str(path)

    return write


def test_arms_lie_over_the_base(write):
    study = plan.read(write(reference="two", about="Why?", headline=["emoji/seen R@1"]))
    assert (study.name, study.about, study.reference, study.headline) == ("quick", "Why?", "two", ("emoji/seen R@1",))
    assert study.tasks == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
    assert study.content("one") == {"trainer.max_steps": 3, "model.lr": 0.1, "model.loss.memory": 0}
    assert study.content("two")["model.lr"] == 0.2


def test_the_first_arm_is_the_reference_by_default(write):
    assert plan.read(write()).reference == "one"


def test_identity_is_what_the_configs_say(write, tmp_path):
    study = plan.read(write())
    (tmp_path / "base.yaml").write_text("# a comment\n" + yaml.safe_dump(BASE | {"trainer": {"default_root_dir": "x", "max_steps": 3}}))
    moved = plan.read(write(configs=[BASE]))
    assert [plan.identity(study, arm) for arm in study.arms] == [plan.identity(moved, arm) for arm in moved.arms]
    assert plan.identity(study, "one") != plan.identity(study, "two")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": {}}, "unknown key 'arm'"),
        ({"arms": None}, "arms=null; name at least one"),
        ({"arms": []}, "arms=[]; name at least one"),
        ({"arms": {"a/b": []}}, "the arm 'a/b' is no name for a folder"),
        ({"arms": {"one": "x.yaml"}}, 'arms.one="x.yaml" is no list of configs'),
        ({"arms": {"one": ["gone.yaml"]}}, "arms.one: gone.yaml: no such file, and no recipe of that name"),
        ({"arms": {"one": [], "two": [{"model": {"lr": 0.1}}]}}, "the overlays of the arm 'two' change nothing against 'one'"),
        ({"reference": "three"}, "reference='three' is none of its arms; they are one, two"),
        ({"configs": []}, "configs=[] is no list of configs"),
        ({"seeds": [0, 0]}, "seeds=[0, 0] has one twice"),
        ({"seeds": [True]}, "seeds=[true] is no list of whole numbers"),
        ({"seeds": []}, "seeds=[] is no list of whole numbers"),
        ({"headline": "R@1"}, 'headline="R@1" is no list of figures'),
    ],
)
def test_refused_with_a_sentence(write, changes, said):
    with pytest.raises(UserError) as refused:
        plan.read(write(**changes))
    assert said in str(refused.value)
    assert "quick.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"), [("- a\n", "holds no keys"), ("a: [\n", "cannot be read"), ("a: 1\na: 2\n", "the key 'a' comes twice")]
)
def test_a_file_that_is_no_study(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        plan.read(str(path))


def test_a_study_that_is_not_there():
    with pytest.raises(UserError, match=r"study gone: no such file, and no study of that name; there are .*core"):
        plan.read("gone")


@pytest.mark.parametrize("name", plan.names())
def test_the_studies_of_the_package_can_be_read(name):
    study = plan.read(name)
    assert study.about
    assert study.reference in study.arms
