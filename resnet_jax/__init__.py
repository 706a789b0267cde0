"""Deep Residual Learning for Image Recognition (He et al., CVPR 2016) in JAX and Flax."""

__version__ = '0.1.0'
