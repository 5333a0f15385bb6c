"""The split that a name says: names of public datasets, and names that only look as if."""

from __future__ import annotations

import pytest

from gratis.errors import GratisError
from gratis.preprocess.sources.splits import divide, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k-validation-00.tar", "val"),
        ("imagenet-val-000000.tar", "val"),
        ("val01.tar", "val"),
        ("2val.tar", "val"),
        ("ILSVRC2012_val", "val"),
        ("ILSVRC2012_img_test_v10102019", "test"),
        ("Validation", "val"),
        ("VALID.TAR", "val"),
        ("train2017", "train"),
        ("TRAINING", "train"),
        ("food.dev.tar", "val"),
        ("eval set", "val"),
        ("imagenetVal-0.tar", "val"),
        ("testset-0.tar", "test"),
        ("testing_000.tar", "test"),
        ("train-00000-of-00001.tar", "train"),
        ("train train.tar", "train"),
        ("valid-eval.tar", "val"),
        ("/data/test/train-0.tar", "train"),
        ("s3://test/val/", "val"),
        ("00000.tar", None),
        ("trainer.tar", None),
        ("retrieval-0.tar", None),
        ("medieval", None),
        ("évalué.tar", None),
        ("contest", None),
        ("device.tar", None),
        ("set.tar", None),
        ("", None),
    ],
)
def test_a_split_is_a_word_of_the_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["train-clean-eval", "s/test_dataset_train.tar", "trainVal"])
def test_a_name_of_two_splits_is_refused(name: str) -> None:
    with pytest.raises(GratisError, match=f"{name!r} has words of two splits in its name, '"):
        split_of(name)


def test_names_are_divided_in_the_order_of_the_splits() -> None:
    names = ["x-test.tar", "x-train-1.tar", "x-train-0.tar", "x-val.tar"]
    divided = divide(names)
    assert divided == {"train": names[1:3], "val": names[3:], "test": names[:1]}
    assert list(divided) == ["train", "val", "test"]
    assert divide(["b.tar", "a.tar"]) == {"train": ["b.tar", "a.tar"]}
    assert divide([]) == {}


def test_a_name_of_no_split_beside_names_of_one_is_refused() -> None:
    with pytest.raises(GratisError, match=r"'s/extra\.tar' names no split, and 'train\.tar' besi"):
        divide(["s/extra.tar", "s/train.tar", "s/val.tar"])
    for names in (["a.tar", "val.tar"], ["0.tar", "train.tar"], ["0.tar", "a.tar", "test.tar"]):
        with pytest.raises(GratisError, match="names no split"):
            divide(names)


def test_mere_numbers_beside_other_splits_are_for_training() -> None:
    """As img2dataset and webdataset number their tars."""
    names = ["00000.tar", "0001-0002.TAR", "test.tar", "val-0.tar"]
    assert divide(names) == {"train": names[:2], "val": names[3:], "test": names[2:3]}


def test_two_words_for_one_split_are_refused() -> None:
    with pytest.raises(GratisError, match=r"'s/dev\.tar' names the split val by 'dev', 'eval\.tar"):
        divide(["s/train.tar", "s/dev.tar", "s/eval.tar"])
    assert divide(["dev-val-0.tar", "val-1.tar"]) == {"val": ["dev-val-0.tar", "val-1.tar"]}
    assert divide(["val.tar", "validation.tar", "Valid.tar"]).keys() == {"val"}
