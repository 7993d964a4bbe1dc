"""What is recorded of a batch is plain data, and gives the batch again."""

from __future__ import annotations

from engine.data.stored_image import Coding, ShardState, StoredImage
from engine.nonfinite.batch_codec import decode, encode


def test_the_path_of_an_image_in_a_shard_is_recorded_as_text() -> None:
    path = StoredImage(ShardState("train-0.tar", 10, 1), "cat_1.jpg", 0, 5, Coding.STORED)
    recorded = encode({"img_path": [path]})
    assert type(recorded["img_path"][0]) is str
    assert decode(recorded) == {"img_path": ["train-0.tar/cat_1.jpg"]}
