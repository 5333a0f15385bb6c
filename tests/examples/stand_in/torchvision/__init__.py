"""Stands in for torchvision, which is not installed with the tests."""
