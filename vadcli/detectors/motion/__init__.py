"""The weight-free detector: where and when something moves as this camera's footage rarely does."""
