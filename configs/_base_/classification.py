"""Classifier, ImageNet-style folders, and the metric."""

custom_imports = dict(imports=["classification"], allow_failed_imports=False)
default_scope = "mmengine"
visualizer = dict(
    type="ClassificationVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)

model = dict(
    type="ImageClassifier",
    backbone=dict(type="convnext_tiny"),
    num_classes="from_classes",
)

data_root = "data/imagenet"
train_dataloader = dict(
    num_workers=10,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="FolderDataset", split="train"),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=10,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="FolderDataset", split="val"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ClassificationMetric", confusion_file="confusion.json")
test_evaluator = val_evaluator
val_cfg = dict(type="ValidationLoop")
test_cfg = dict()
