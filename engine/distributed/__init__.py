"""Several processes of one training: started, compared, agreed, and sharing a model."""
