"""Published judges of pictures behind one small interface.

========== ============================================== =====================================
name       what it says                                   where its weights are published
========== ============================================== =====================================
clip       cosine of caption and picture                  openai/clip-vit-large-patch14
pickscore  scaled cosine, tuned on Pick-a-Pic             yuvalkirstain/PickScore_v1
hpsv2      cosine, tuned on people's rankings             xswu/HPSv2 (convert)
aesthetic  1 to 10, whatever the caption                  sac+logos+ava1-l14-linearMSE (convert)
imagereward standardised reward, 0 for the usual picture  THUDM/ImageReward (convert)
========== ============================================== =====================================

The last three are published as pickles. ``convert.py`` opens one once, without running anything in
it, and writes a directory of safetensors; scorers load nothing else.
"""

from training.evaluate.scorers.base import Scorer
from training.evaluate.scorers.load import SCORERS, load_scorer

__all__ = ["SCORERS", "Scorer", "load_scorer"]
