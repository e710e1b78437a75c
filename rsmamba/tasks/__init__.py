"""Lightning tasks on TorchGeo's ``BaseTask``."""

from rsmamba.tasks.classify import SceneClassification
from rsmamba.tasks.pretrain import RoMAPretraining
from rsmamba.tasks.segment import SemanticSegmentation

__all__ = ["RoMAPretraining", "SceneClassification", "SemanticSegmentation"]
