"""All uses of private API of torch and Triton: Dynamo, Inductor, fake tensors, launchers.

Private API may change in any version. No other file of the package uses it: there is a module for each topic here, and
``table/`` says for each name why it is needed, which versions of torch have it, and what happens without it.
``python -m innerq_compile env`` lists the names that the installed torch lacks.

To support another version of torch: run ``env`` with it, read the entries of the missing names, and handle the
difference in the module of their topic.

This package is imported while torch itself is being imported (``TORCH_LOGS=innerq_compile``), so it imports nothing.
"""
