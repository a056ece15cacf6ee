"""What runs a model: the only files that import TensorFlow and Keras."""
