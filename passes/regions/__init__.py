"""Cuts a graph into regions, so that those that do the same are compiled once.

    embedding, norm | layer 0 | layer 1 | ... | layer 31 | head        34 regions of 3 kinds: 3 compilations

A decoder repeats its layers. Compiling a region takes time in proportion to its nodes, so compiling each kind of region
once, and calling it with the weights and caches of each layer, takes a fraction of the time for the whole graph.
Regions are found by what their nodes do (``description.py``), not by names of modules. Two kinds of layers in any order
are two kinds of regions. A graph without repetition is left whole.

    cuts.py             the places where a graph may be cut
    description.py      what a region does: equal descriptions mean that one compiled function serves both
    shared.py           what is computed once for all layers is moved in front of them
    find.py             chooses the cuts with the least to compile
    extract.py          a region as a graph module of its own
    guards.py           the conditions on sizes that a compiled region relies on, for each of its calls

Regions begin at a matrix product. Inductor does not fuse a product with what precedes it, so that no kernel is lost by
the cut.
"""

from .cuts import is_size
from .extract import ExtractedRegion, extract
from .find import Region, Regions, find_regions
from .guards import Guards

__all__ = ["ExtractedRegion", "Guards", "Region", "Regions", "extract", "find_regions", "is_size"]
