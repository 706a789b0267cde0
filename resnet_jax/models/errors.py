"""The error for model fields or image sizes that do not describe a valid network."""


class ConfigError(ValueError):
    """A field of `config.model` is out of its range, or the images are too small for the network.

    The sentence names the field and the range. Only this is a user's mistake; any other exception
    out of a network is an error in its code, and keeps its traceback.
    """
