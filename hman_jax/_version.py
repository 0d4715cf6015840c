"""The version of hman_jax."""

__version__ = '0.1.0'
