"""R@1 by what captions are like, of a table of ranks that was written by hand."""

import pytest

from cir_lightning.study.captions import slices_of
from data_modules.errors import UserError

TABLE = """\
group,query,reference,caption,rank,words,edits,kind of edit,relation
one,0,a,in red,1,2,1,colour,
one,1,a,"in red, on the left",2,5,2,colour; direction,
one,2,b,left,1,1,1,direction,
two,0,a,its food,3,2,,,food
two,1,a,its tool,1,2,,,tool
"""


def test_recall_by_length_and_property(tmp_path):
    file = tmp_path / "queries.csv"
    file.write_text(TABLE)
    assert slices_of(file) == {
        ("one", "words"): {"1 (1)": 100, "2 (1)": 100, "5 (1)": 0},
        ("one", "edits"): {"1 (2)": 100, "2 (1)": 0},
        ("one", "kind of edit"): {"colour (2)": 50, "direction (2)": 50},
        ("two", "relation"): {"food (1)": 0, "tool (1)": 100},
    }
    assert slices_of(tmp_path / "none.csv") == {}


def test_what_has_too_many_values_is_left_out(tmp_path):
    file = tmp_path / "queries.csv"
    file.write_text("group,query,reference,caption,rank,words,role\n" + "".join(f"g,{at},a,x,1,2,role {at}\n" for at in range(30)))
    assert slices_of(file) == {}


@pytest.mark.parametrize("line", ["one,0,a,in red,first,2,1,colour,", "one,0"])
def test_a_damaged_table_is_a_sentence(tmp_path, line):
    file = tmp_path / "run" / "test" / "queries.csv"
    file.parent.mkdir(parents=True)
    file.write_text(f"{TABLE}{line}\n")
    with pytest.raises(UserError, match=r"queries\.csv: damaged .*; run cir test on .*run again"):
        slices_of(file)
