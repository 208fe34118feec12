"""The context: data that passes hand to later passes and to the compiler.

``context.py``     the fields of the context
``reasons.py``     why something was not rewritten
``caches.py``      caches and buffers among the inputs, and where an attention gets its keys and values from
``attentions.py``  attentions as found and in standard form, their masks and their key normalization
``outputs.py``     how the outputs of the program are rebuilt from those of the rewritten graph
``prelude.py``     the graph that runs before a recorded one
"""

from .attentions import (
    AttentionAxes,
    AttentionForm,
    AttentionMatch,
    HeadRange,
    KeyNormUse,
    Latent,
    MaskKind,
    MaskTerm,
    NormPlace,
    NormPlaces,
    NormSite,
    Projection,
    StandardForm,
    TokenPart,
)
from .caches import BufferUse, CacheInput, CacheSource, CacheUse, ProgramCache, ShadowInput, wrong_roles
from .context import Config, PassContext
from .outputs import Appended, Number, OutputPlan, Quantized
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
    "HeadRange",
    "KeyNormUse",
    "Latent",
    "MaskKind",
    "MaskTerm",
    "NoMatch",
    "NormPlace",
    "NormPlaces",
    "NormSite",
    "Number",
    "OutputPlan",
    "PassContext",
    "PassFailure",
    "Prelude",
    "ProgramCache",
    "Projection",
    "Quantized",
    "Reason",
    "ShadowInput",
    "StandardForm",
    "TokenPart",
    "wrong_roles",
]
