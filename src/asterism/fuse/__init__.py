"""Knowledge of LoRA adapters on other backbones moved into an adapter of the target backbone."""
