"""skindist: distributed fine-tuning that tells malignant from benign skin lesions.

The public names stand, with their types, in `__init__.pyi`; each is imported when it is first used, so that
`import skindist` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
