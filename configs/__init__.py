"""Recipes: ml_collections configs, `--config=configs/NAME.py`."""
