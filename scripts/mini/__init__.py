"""The stages that train the mini base: one module for each model."""
