"""Makes teachers of other models: the base under an adapter, and mixtures of several."""

from .mixture import Mixture, mixture
from .self_teacher import SelfTeacher, self_teacher

__all__ = ["Mixture", "SelfTeacher", "mixture", "self_teacher"]
