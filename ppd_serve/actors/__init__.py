"""What runs in each actor: a room, loaded and warm once its constructor returns.

torch is imported only where it is needed, while the other actors are already up. No Ray here.
"""

from ppd_serve.actors.diffuser import Diffuser
from ppd_serve.actors.encoder import Encoder
from ppd_serve.actors.index import UserIndex

__all__ = ["Diffuser", "Encoder", "UserIndex"]
