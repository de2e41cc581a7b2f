import pytest

from kerasq import fits


@pytest.mark.parametrize(
    ("equation", "rank", "rows", "kernel", "taken", "output"),
    [
        ("abc,cd->abd", 3, (0, 1, 2), (0, 1), 1, (0, 1, 2)),
        ("...c,cd->...d", 4, (0, 1, 2, 3), (0, 1), 1, (0, 1, 2, 3)),
        ("abcd,cde->abe", 4, (0, 1, 2, 3), (0, 1, 2), 2, (0, 1, 2)),
        # Another axis than the last is summed over, and the kernel has it last.
        ("abc,db->adc", 3, (0, 2, 1), (1, 0), 1, (0, 2, 1)),
        ("abc,dec->adbe", 3, (0, 1, 2), (2, 0, 1), 1, (0, 2, 1, 3)),
    ],
)
def test_an_einstein_sum_as_a_matrix(equation, rank, rows, kernel, taken, output):
    assert fits.as_matrix(equation, rank) == fits.Matrix(
        rows=rows, kernel=kernel, taken=taken, output=output
    )


@pytest.mark.parametrize(
    "equation",
    [
        "abc,bcd->abd",  # other weights at each place
        "abc,ad->bcd",  # a sum over the samples
        "abc,cd->bad",  # samples behind
        "abb,bc->ac",  # a diagonal
        "abc,cd->ad",  # a sum over one operand alone
        "abc,de->abcde",  # no sum
        "abc,c->ab",  # one unit, which is no axis
    ],
)
def test_an_einstein_sum_that_is_no_matrix(equation):
    assert fits.as_matrix(equation, 3) is None


def test_an_einstein_sum_of_two_tensors():
    assert fits.as_product("bqhd,bkhd->bhqk", 4) == fits.Product(
        shared=2,
        summed=1,
        first=(0, 2, 1, 3),
        second=(0, 2, 1, 3),
        output=(0, 1, 2, 3),
    )
    assert fits.as_product("btf,btf->bt", 3).shared == 2
    for equation in ("btf,tg->bg", "btf,btg->bfgt", "btf,cft->bc", "btt,bts->bs"):
        assert fits.as_product(equation, 3) is None
