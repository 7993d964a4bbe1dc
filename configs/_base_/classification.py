"""Training images in folders by class, as ImageNet is laid out; imagenet1k.py has validation, a recipe the model."""

custom_imports = dict(imports=["classification"], allow_failed_imports=False)
default_scope = "mmengine"
visualizer = dict(
    type="ClassificationVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)

train_dataloader = dict(
    num_workers=10,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="FolderDataset", split="train"),
)
