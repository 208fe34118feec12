"""What the passes tell one another.

``context.py``     the state of one run of the pipeline: what each pass finds, for those behind it
``reasons.py``     why something stays as it is
``caches.py``      quantized caches and buffers among the inputs, and how an attention comes by its keys and values
``attentions.py``  the attentions that were found, their one form, their masks, where they are normalized
``outputs.py``     how the program's outputs are made of those of the new graph
``prelude.py``     what is computed before a graph that is recorded
"""

from .attentions import (
    AttentionAxes,
    AttentionForm,
    AttentionMatch,
    KeyNormUse,
    MaskKind,
    MaskTerm,
    NormPlace,
    NormPlaces,
    NormSite,
    StandardForm,
)
from .caches import BufferUse, CacheInput, CacheSource, CacheUse, ProgramCache, ShadowInput, wrong_roles
from .context import Config, PassContext
from .outputs import Appended, OutputPlan, Quantized
from .prelude import Prelude
from .reasons import GraphError, NoMatch, PassFailure, Reason

__all__ = [
    "Appended",
    "AttentionAxes",
    "AttentionForm",
    "AttentionMatch",
    "BufferUse",
    "CacheInput",
    "CacheSource",
    "CacheUse",
    "Config",
    "GraphError",
    "KeyNormUse",
    "MaskKind",
    "MaskTerm",
    "NoMatch",
    "NormPlace",
    "NormPlaces",
    "NormSite",
    "OutputPlan",
    "PassContext",
    "PassFailure",
    "Prelude",
    "ProgramCache",
    "Quantized",
    "Reason",
    "ShadowInput",
    "StandardForm",
    "wrong_roles",
]
