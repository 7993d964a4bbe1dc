"""ImageNet-1K in its customary place, validated on its 50,000 validation images."""

classes = "imagenet-1k"
data_root = "data/imagenet"
val_dataloader = dict(
    batch_size=128,
    num_workers=10,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="FolderDataset", split="val", test_mode=True),
)
val_evaluator = dict(type="ClassificationMetric", confusion_file="confusion.json")
val_cfg = dict(type="ValidationLoop")
