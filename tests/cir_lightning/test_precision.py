"""Precisions that spoil training or slow it down."""

import pytest

from cir_lightning.precision import check_precision, has_bf16
from data_modules.errors import UserError


@pytest.fixture
def cpuinfo(tmp_path):
    def write(text):
        (tmp_path / "cpuinfo").write_text(text)
        return tmp_path / "cpuinfo"

    return write


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 lm\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\nflags\t\t: fpu\n", False),
        ("machine : something else\n", None),
    ],
)
def test_what_processors_can_do(cpuinfo, text, has):
    assert has_bf16(cpuinfo(text)) is has


def test_where_nobody_says(tmp_path):
    assert has_bf16(tmp_path / "none") is None


def test_slow_precision_is_a_warning(cpuinfo, recwarn):
    slow = cpuinfo("flags : fpu avx2\n")
    with pytest.warns(UserWarning, match=r"precision=bf16-mixed: these processors have no bf16 units .* set trainer\.precision to 32-true"):
        check_precision("bf16-mixed", "cpu", slow)
    recwarn.clear()
    for precision, device, path in (("bf16-mixed", "cuda", slow), ("32-true", "cpu", slow), ("bf16-mixed", "cpu", cpuinfo("flags : bf16"))):
        check_precision(precision, device, path)
    assert not recwarn.list


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_rounded_weights_are_refused(precision):
    with pytest.raises(UserError, match=f"trainer.precision='{precision}' would round the trained float32 weights at every step"):
        check_precision(precision, "cuda")
