"""The one place for API of torch and Triton that they do not document: Dynamo, Inductor, fake tensors, launchers.

Such names may change with any version. No other file of the package uses one: they come from the modules here, one a
topic, and ``table/`` says of each what it is needed for, in which versions of torch it was read, and what happens
without it. ``python -m innerq_compile env`` lists those that the installed torch does not have.

To support another version of torch: run ``env`` there, read what the table says of each name that is missing, and
bridge the difference in its module here.

This package is imported while torch itself is being imported (``TORCH_LOGS=innerq_compile``), so it imports nothing.
"""
