"""Handlers that cold.py compares the function with. Each uses boto3 and crhelper as pip installs them."""
