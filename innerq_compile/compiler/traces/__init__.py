"""Dynamo's traces of models on disk: a new process that runs the same model does not trace it again.

    store.py          files of traces, by a key of everything that is known before a call
    fingerprints.py   what a class, function or module is, in words that hold in every process
    keeping.py        keeps what Dynamo has found, and restores it where Dynamo would find the same

A kept trace is the graph as Dynamo captured it, the bytecode that calls it, and the guards under which both are valid.
It is used only if Dynamo's guards, built anew from the values of the call, state word for word what they stated when it
was kept. An object that a guard identifies by its address (a class, a function, a module) is compared by its
fingerprint, which covers the code of a function and of all methods of a class: a library that was updated, or a method
that was replaced, is another object. The backend compiles the graph as one of Dynamo's own, so that options, passes and
caches of compiled code work as ever.
"""
