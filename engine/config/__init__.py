"""From a config file to the config that runs: read, checked, and fitted to the batch, classes and launch."""
