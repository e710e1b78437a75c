"""Lightning tasks on TorchGeo's ``BaseTask``.

Names load on first use: a YAML for stock TorchGeo that names :class:`callbacks.Register` must not
load a second ``SemanticSegmentation``, which would make TorchGeo's short name ambiguous.
"""

from typing import TYPE_CHECKING

from rsmamba.lazy import lazy

if TYPE_CHECKING:
    from rsmamba.tasks.change import ChangeDetection
    from rsmamba.tasks.classify import SceneClassification
    from rsmamba.tasks.pretrain import RoMAPretraining
    from rsmamba.tasks.segment import SemanticSegmentation

__all__ = ("ChangeDetection", "RoMAPretraining", "SceneClassification", "SemanticSegmentation")

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ChangeDetection": "change",
        "RoMAPretraining": "pretrain",
        "SceneClassification": "classify",
        "SemanticSegmentation": "segment",
    },
)
